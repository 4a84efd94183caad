import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-web";
import { describe, expect, it } from "vitest";
import { checkedLayout } from "../../compiler/lower.js";
import halfLayers from "../golden/half-layers/layout.js";
import jambaBlock from "../golden/jamba-block/layout.js";
import slidingWindow from "../golden/sliding-window/layout.js";
import { GraphSession, withCompiled } from "../properties/graph-session.js";
import { relativeError } from "../reference/compare.js";

const prompt = [3, 1, 4, 1, 5, 9, 2, 6];

describe.each([jambaBlock, slidingWindow, halfLayers])("$name in onnxruntime-web", (model) => {
  it.each(["none", "experts-int8", "int8"] as const)("gives the logits and the state that onnxruntime-node gives, quantised: %s", async (quantize) => {
    ort.env.wasm.numThreads = 1;
    await withCompiled(checkedLayout(model), { seed: 7, quantize }, async (folder) => {
      await using native = await GraphSession.open(folder);
      const { manifest } = native;
      const expected = await native.run(native.empty(1, prompt.length), [prompt]);

      const externalData = await Promise.all(manifest.files.map(async ({ file }) => ({ path: file, data: new Uint8Array(await readFile(join(folder, file))) })));
      const session = await ort.InferenceSession.create(new Uint8Array(await readFile(join(folder, manifest.graph.file))), { executionProviders: ["wasm"], externalData, logSeverityLevel: 3 });
      const int64 = (values: readonly number[], dims: readonly number[]) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
      const state = [...native.empty(1, prompt.length).tensors].map(([name, { data, dims }]) => [name, new ort.Tensor("float32", data as Float32Array, dims)] as const);
      const fetched = await session.run({
        [manifest.inputs.inputIds.name]: int64(prompt, [1, prompt.length]),
        [manifest.inputs.pastLengths.name]: int64([0], [1]),
        [manifest.inputs.lengths.name]: int64([prompt.length], [1]),
        [manifest.inputs.logitIndices.name]: int64(prompt.map((_, t) => t), [1, prompt.length]),
        ...Object.fromEntries(state),
      });
      expect(relativeError(fetched[manifest.outputs.logits.name]!.data as Float32Array, expected.logits[0]!)).toBeLessThan(1e-5);
      for (const { past, present } of manifest.state)
        expect(relativeError(fetched[present]!.data as Float32Array, expected.state.tensors.get(past)!.data as Float32Array), present).toBeLessThan(1e-5);
      await session.release();
    });
  });
});
