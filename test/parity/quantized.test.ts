// int8 models give the logits of their dequantised weights: the function bodies and the native kernels against the float64 evaluator.
// How far those lie from the float32 model's is measured in docs/quantization.md.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import type { Manifest } from "layerweave/manifest";
import { load } from "layerweave/runtime";
import { relativeError } from "../reference/compare.js";
import { evaluate, type Weights } from "../reference/evaluate.js";
import { widen } from "../reference/safetensors.js";
import { backends } from "../support/backends.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const names = ["jamba-block", "jamba-dense", "mixtral", "falcon-mamba"];
/**
 * Between logits with int8 weights. Function bodies compute in float32. The kernels round activations to 16 bits (kernels/include/
 * cpu/linear.h): a step is 1.5e-5 of the largest of 256 activations, and these layers with random weights, 64 wide, make up to
 * 0.12 % of it. int8 weights themselves change these logits by 2 to 25 % (docs/quantization.md).
 */
const toleranceOn = (backend: string) => (backend === "native" ? 2e-3 : 1e-5);
const ids = Array.from({ length: 40 }, (_, i) => (i * 37 + (i % 7) * 11 + 5) % 320);

/** What the stored weights stand for, in float64. */
function dequantized(folder: string, { weights }: Manifest): Weights {
  const bytesOf = ({ file, offset, bytes }: Manifest["weights"][number]) => readFileSync(join(folder, file)).subarray(offset, offset + bytes);
  const letter = { float32: "F32", bfloat16: "BF16", float16: "F16" } as const;
  return new Map(
    weights
      .filter((w) => w.scalesOf === undefined)
      .map((w) => {
        if (w.dtype !== "int8") return [w.name, widen(bytesOf(w), letter[w.dtype as keyof typeof letter])];
        const scale = weights.find((s) => s.scalesOf === w.name);
        if (!scale) throw new Error(`${w.name} has no scales`);
        const [codes, scales, width] = [bytesOf(w), widen(bytesOf(scale), "F32"), w.shape[1] as number];
        return [w.name, Float64Array.from(codes, (_, i) => codes.readInt8(i) * (scales[Math.floor(i / width)] as number))];
      }),
  );
}

describe.each(names)("%s", async (name) => {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", name));
  const layout = checkedLayout(checkpoint.spec);

  describe.each(["experts-int8", "int8"] as const)("%s", async (quantize) => {
    const folder = join(out, `${name}-${quantize}`);
    const { manifest } = await compile(layout, { out: folder, weights: { from: "checkpoint", checkpoint }, quantize });
    const expected = evaluate(layout, dequantized(folder, manifest), ids).logits;

    describe.each(backends)("on the %s backend", async (backend) => {
      const model = await load(folder, { backend });
      afterAll(() => model.close());

      // One token at a time, few rows, and more rows than the kernels take as they lie; then the rest.
      test.each([1, 5, 30])("a first chunk of %i tokens", async (first) => {
        await using state = await model.createState();
        const logits: number[] = [];
        for (let at = 0, end = first; at < ids.length; at = end, end = first === 1 ? end + 1 : ids.length)
          logits.push(...((await model.forward(state, [ids.slice(at, end)], { logits: "all" }))[0] as Float32Array));
        expect(relativeError(logits, expected.flatMap((row) => [...row]))).toBeLessThanOrEqual(toleranceOn(backend));
      });
    });
  });
});

describe.each(["experts-int8", "int8"] as const)("a batch of ragged rows with %s", async (quantize) => {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", "jamba-block"));
  const folder = join(out, `ragged-${quantize}`);
  await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, quantize });

  test.each(backends)("each row gets the logits it gets alone, on the %s backend", async (backend) => {
    await using model = await load(folder, { backend });
    const rows = [ids.slice(0, 3), ids.slice(0, 29), ids.slice(10, 11)];
    await using batch = await model.createState({ batch: rows.length });
    const together = await model.forward(batch, rows, { logits: "all" });
    for (const [b, row] of rows.entries()) {
      await using alone = await model.createState();
      expect(relativeError(together[b] as Float32Array, (await model.forward(alone, [row], { logits: "all" }))[0] as Float32Array)).toBeLessThanOrEqual(toleranceOn(backend));
    }
  });
});
