// What ONNX Runtime makes of int8 weights on the function bodies: they stay int8, and are widened where they are used.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { InferenceSession } from "onnxruntime-node";
import { expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "../../compiler/index.js";
import { modelProto, onnxDtype } from "../../compiler/onnx/schema.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();

interface Optimised {
  readonly graph: { readonly node: readonly { readonly opType: string; readonly input: readonly string[]; readonly output: readonly string[] }[]; readonly initializer: readonly { readonly name: string; readonly dataType: number; readonly dims: readonly unknown[] }[] };
}

test.each(["experts-int8", "int8"] as const)("%s: no weight is widened while loading", async (quantize) => {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", "jamba-block"));
  const folder = join(out, quantize);
  const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, quantize });
  const optimizedModelFilePath = join(out, `${quantize}.onnx`);
  const session = await InferenceSession.create(join(folder, manifest.graph.file), { logSeverityLevel: 3, optimizedModelFilePath });
  await session.release();
  const { graph } = modelProto.decode(readFileSync(optimizedModelFilePath)) as unknown as Optimised;
  const int8 = new Set(manifest.weights.filter((w) => w.dtype === "int8").map((w) => w.name));
  expect(new Set(graph.initializer.filter((t) => t.dataType === onnxDtype.int8).map((t) => t.name))).toEqual(int8);
  const widened = graph.node.filter((n) => n.opType === "DequantizeLinear").map((n) => n.input[0]);
  const codes = graph.node.filter((n) => n.opType === "Reshape" && int8.has(n.input[0] ?? ""));
  expect(codes.map((n) => n.input[0]).sort()).toEqual([...int8].sort());
  // What is reshaped depends on x, and so comes after it.
  expect(widened.sort()).toEqual(codes.flatMap((n) => n.output).sort());
});
