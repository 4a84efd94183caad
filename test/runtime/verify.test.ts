import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { load, verify } from "#dist/runtime/index.js";
import { rejection } from "./diagnostics.js";
import { fakeModel, referenceLogits, removeFakes, safetensors, vocabSize, type FakeOptions } from "./fake-model.js";

afterAll(removeFakes);

type Tensors = Parameters<typeof safetensors>[0];

const prompts = [Array.from({ length: 21 }, (_, i) => (i * 7) % 256), Array.from({ length: 21 }, (_, i) => (i * 11 + 3) % 256)];
const ints = (values: readonly (readonly number[])[]): Tensors[string] => ({
  dtype: "I64",
  shape: [values.length, values[0]?.length ?? 0],
  bytes: new Uint8Array(BigInt64Array.from(values.flat(), BigInt).buffer),
});
const floats = (values: readonly number[], shape: readonly number[]): Tensors[string] => ({ dtype: "F32", shape, bytes: new Uint8Array(Float32Array.from(values).buffer) });

function reference(steps = 6): Record<string, Tensors[string]> {
  const logits = prompts.flatMap((prompt) => Array.from(referenceLogits(prompt)));
  const generated: number[][] = [];
  const stepLogits: number[] = [];
  for (const prompt of prompts) {
    const ids = [...prompt];
    for (let step = 0; step < steps; step++) {
      const last = Array.from(referenceLogits(ids)).slice(-vocabSize);
      stepLogits.push(...last);
      ids.push(last.indexOf(Math.max(...last)));
    }
    generated.push(ids.slice(prompt.length));
  }
  return { input_ids: ints(prompts), logits: floats(logits, [2, 21, vocabSize]), generated_ids: ints(generated), step_logits: floats(stepLogits, [2, steps, vocabSize]) };
}

async function verified(tensors: Tensors, options: FakeOptions = {}): Promise<ReturnType<typeof verify>> {
  const folder = await fakeModel(options);
  const file = join(folder, "reference.safetensors");
  await writeFile(file, safetensors(tensors).file);
  await using model = await load(folder);
  return await verify(model, file);
}

describe("verify", () => {
  test("a right model is within rounding, whole, in every split and while decoding", async () => {
    const { relativeError, maxAbsError, generatedIdsMatch, stepRelativeError, splits } = await verified(reference());
    for (const error of [relativeError, stepRelativeError, ...Object.values(splits)]) expect(error).toBeLessThan(1e-6);
    expect(maxAbsError).toBeLessThan(1e-4);
    expect(generatedIdsMatch).toBe(true);
  });

  test("a reference without generated_ids leaves that part out", async () => {
    const { input_ids, logits } = reference();
    expect(await verified({ input_ids: input_ids!, logits: logits! })).toMatchObject({ generatedIdsMatch: null, stepRelativeError: null });
  });

  test("a wrong model is far off", async () => {
    const { relativeError, generatedIdsMatch, splits } = await verified(reference(), { seed: 2 });
    expect(relativeError).toBeGreaterThan(0.1);
    expect(splits["5"]).toBeGreaterThan(0.1);
    expect(generatedIdsMatch).toBe(false);
  });

  test("a single different logit and a single different token are seen", async () => {
    const tensors = reference();
    const logits = new Float32Array(tensors.logits!.bytes.buffer);
    logits[777] = (logits[777] ?? 0) + 3;
    const generated = new BigInt64Array(tensors.generated_ids!.bytes.buffer);
    generated[11] = ((generated[11] ?? 0n) + 1n) % 256n;
    const result = await verified(tensors);
    expect(result.maxAbsError).toBeCloseTo(3, 4);
    expect(result.relativeError).toBeGreaterThan(1e-4);
    expect(result.generatedIdsMatch).toBe(false);
  });

  test("NaN in the reference never passes", async () => {
    const tensors = reference();
    new Float32Array(tensors.logits!.bytes.buffer)[5] = NaN;
    const { relativeError, maxAbsError, splits } = await verified(tensors);
    for (const error of [relativeError, maxAbsError, ...Object.values(splits)]) expect(error).toBeNaN();
  });

  test.each<[string, string, (tensors: Record<string, Tensors[string]>) => Tensors]>([
    ["no input_ids", "runtime/reference-mismatch", ({ input_ids: _, ...rest }) => rest],
    ["no logits", "runtime/reference-mismatch", ({ logits: _, ...rest }) => rest],
    ["ids of another type", "runtime/reference-mismatch", (t) => ({ ...t, input_ids: { ...t.input_ids!, dtype: "I32" } })],
    ["logits of another type", "runtime/reference-mismatch", (t) => ({ ...t, logits: { ...t.logits!, dtype: "F16" } })],
    ["another vocabulary", "runtime/reference-mismatch", (t) => ({ ...t, logits: { ...t.logits!, shape: [2, vocabSize, 21] } })],
    ["one rank less", "runtime/reference-mismatch", (t) => ({ ...t, logits: { ...t.logits!, shape: [42, vocabSize] } })],
    ["another batch", "runtime/reference-mismatch", (t) => ({ ...t, generated_ids: ints([[1, 2, 3, 4, 5, 6]]) })],
    ["fewer bytes than its shape says", "runtime/reference-mismatch", (t) => ({ ...t, logits: { ...t.logits!, bytes: t.logits!.bytes.slice(4) } })],
    ["no tokens", "runtime/reference-mismatch", (t) => ({ ...t, input_ids: ints([[], []]), logits: floats([], [2, 0, vocabSize]) })],
    ["ids out of range", "runtime/reference-mismatch", (t) => ({ ...t, input_ids: ints(prompts.map((p) => p.map((id) => id + vocabSize))) })],
  ])("a reference with %s is a diagnostic", async (_, code, damage) => {
    const problems = await rejection(verified(damage(reference())));
    expect(new Set(problems.map((p) => p.code))).toEqual(new Set([code]));
  });

  test("a reference longer than the context is a diagnostic", async () => {
    expect((await rejection(verified(reference(), { contextLength: 20 }))).map((p) => p.code)).toEqual(["runtime/reference-mismatch"]);
  });

  test.each<[string, Buffer | undefined]>([
    ["is not there", undefined],
    ["is empty", Buffer.alloc(0)],
    ["is cut in its header", safetensors(reference()).file.subarray(0, 100)],
    ["is cut in its data", safetensors(reference()).file.subarray(0, 5000)],
    ["has a header that is not JSON", Buffer.concat([Buffer.from([5, 0, 0, 0, 0, 0, 0, 0]), Buffer.from("hello")])],
    ["has a header that is a list", Buffer.concat([Buffer.from([2, 0, 0, 0, 0, 0, 0, 0]), Buffer.from("[]")])],
    ["has entries without a shape", Buffer.concat([Buffer.from([19, 0, 0, 0, 0, 0, 0, 0]), Buffer.from('{"logits":{"a":1 }}')])],
  ])("a reference that %s is a diagnostic", async (_, content) => {
    const folder = await fakeModel();
    const file = join(folder, "reference.safetensors");
    if (content) await writeFile(file, content);
    await using model = await load(folder);
    expect((await rejection(verify(model, file))).map((p) => p.code)).toEqual(["runtime/reference-unreadable"]);
  });
});
