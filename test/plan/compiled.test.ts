import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { compile } from "../../compiler/compile.js";
import { openSafetensors } from "../../compiler/weights/safetensors.js";
import { inRepository } from "../support/folders.js";
import { importCheckpoint } from "../../compiler/importers/index.js";
import { checkedLayout } from "../../compiler/lower.js";
import { planModel, profileLayout } from "../../compiler/passes/profile-model.js";
import { portable } from "../../compiler/targets/portable.js";
import { bytesPerElement } from "../../core/dtype.js";
import { parseManifest, type StateSlot } from "../../core/manifest.js";
import { deviceNamed } from "../../core/plan/devices.js";
import { planModelOf } from "../../core/plan/model.js";
import { exampleLayout, exampleModel, examples, planned, small } from "./layouts.js";

let out: string;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), "layerweave-plan-"));
});
afterAll(() => rm(out, { recursive: true, force: true }));

const cases = Object.keys(small).flatMap((name) => (["float32", "bfloat16", "float16"] as const).map((dtype) => [name, dtype] as const));

test.each(cases)("%s in %s: the plan's weights are the bytes that compile writes", async (name, dtype) => {
  const layout = checkedLayout(small[name] as (typeof small)[string]);
  const folder = join(out, `${name}-${dtype}`);
  const { manifest } = await compile(layout, { out: folder, weights: { from: "random", seed: 1 }, dtype });
  const inMemory = planModel(layout, portable, dtype);
  const onDisk = planModelOf(parseManifest(await readFile(join(folder, "manifest.json"), "utf8"), folder));
  const { bytes, parameters } = planned(inMemory, { context: 100, chunk: 10 });
  expect(planned(onDisk, { context: 100, chunk: 10 })).toEqual(planned(inMemory, { context: 100, chunk: 10 }));
  expect(onDisk.profile).toEqual(profileLayout(layout, portable));
  expect(parameters).toEqual(manifest.model.parameters);

  const file = await readFile(join(folder, "weights.safetensors"));
  const header = 8 + Number(file.readBigUInt64LE(0));
  expect(bytes.weights).toBe((await stat(join(folder, "weights.safetensors"))).size - header);
});

const fixtures = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"].map((name) => `test/fixtures/hf/${name}`);

test.each([...fixtures, "examples/tiny-jamba"])("%s: the plan's weights are the bytes of the checkpoint's files without their headers", async (path) => {
  const checkpoint = await importCheckpoint(inRepository(path));
  const layout = checkedLayout(checkpoint.spec);
  const { manifest } = await compile(layout, { out: join(out, path), weights: { from: "checkpoint", checkpoint } });
  const { files } = await openSafetensors(inRepository(path));
  const stored = files.reduce((sum, { bytes, headerBytes }) => sum + bytes - headerBytes, 0);
  expect(planned(planModelOf(manifest), { context: 100, chunk: 10 }).bytes.weights).toBe(stored);
  expect(manifest.weights.reduce((sum, w) => sum + w.bytes, 0)).toBe(stored);
  // A layout alone says which matrices are stored how, and counts the rest as float32, which the fixtures are throughout.
  if (path !== "examples/tiny-jamba") expect(planned(planModel(layout, portable, "float32"), { context: 100, chunk: 10 }).bytes.weights).toBe(stored);
});

test.each(examples)("%s: the plan's weights are the bytes that compile plans", async (name) => {
  const { manifest } = await compile(await exampleLayout(name), { out: join(out, name), weights: { from: "none" }, dtype: "bfloat16" });
  const { bytes, parameters } = planned(await exampleModel(name));
  expect(bytes.weights).toBe(manifest.weights.reduce((sum, w) => sum + w.bytes, 0));
  expect(parameters).toEqual(manifest.model.parameters);
  expect(manifest.profile).toEqual((await exampleModel(name)).profile);
});

test("state bytes are those of the tensors that a run takes, and twice that of what a run that fails must leave as it was", async () => {
  for (const spec of Object.values(small)) {
    const model = planModel(checkedLayout(spec), portable, "float32");
    const sizes: Readonly<Record<string, number>> = { B: 3, S: 100 };
    const bytesOf = (slot: StateSlot) => slot.shape.reduce<number>((n, d) => n * (typeof d === "number" ? d : (sizes[d] as number)), bytesPerElement[slot.dtype]);
    const sum = (slots: readonly StateSlot[]) => slots.reduce((bytes, slot) => bytes + bytesOf(slot), 0);
    const { bytes } = planned(model, { device: deviceNamed("cpu"), budget: 1e9, context: 100, batch: 3 });
    expect(bytes.kvCache + bytes.convState + bytes.ssmState).toBe(sum(model.state));
    expect(bytes.stateCopies).toBe(sum(model.state.filter((slot) => slot.update === "swap")));
    const card = planned(model, { context: 100, batch: 3 }).bytes;
    expect(card.stateCopies).toBe(card.convState + card.ssmState);
  }
});

test.each(["experts-int8", "int8"] as const)("%s of a layout holds on the CPU what the folder compiled so does", async (quantize) => {
  for (const name of ["hybrid", "mixture", "window"]) {
    const layout = checkedLayout(small[name] as (typeof small)[string]);
    const { manifest } = await compile(layout, { out: join(out, `${name}-${quantize}`), weights: { from: "random", seed: 1 }, quantize });
    for (const device of ["cpu", "cpu-native"].map(deviceNamed)) {
      const options = { device, budget: 1e9, context: 100, chunk: 40 };
      expect(planned(planModel(layout, portable, "float32", quantize), { ...options, quantize }).bytes).toEqual(planned(planModelOf(manifest), options).bytes);
    }
  }
});
