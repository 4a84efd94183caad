// Folders compiled with --quantize: which weights are int8, that they take the bytes the planner counts, and that all else stays.
import { copyFileSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, statSync, writeSync, closeSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { checkedLayout, compile, importCheckpoint } from "../../compiler/index.js";
import { planModel } from "../../compiler/passes/profile-model.js";
import { portable } from "../../compiler/targets/portable.js";
import { planModelOf } from "../../core/plan/model.js";
import { planned, small } from "../plan/layouts.js";
import { readTensors } from "../reference/safetensors.js";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const random = { from: "random", seed: 3 } as const;
const modes = ["experts-int8", "int8"] as const;

describe.each(modes)("%s", (quantize) => {
  test.each(Object.keys(small))("%s takes the bytes that are planned", async (name) => {
    const dtype = "bfloat16";
    const layout = checkedLayout(small[name] as (typeof small)[string]);
    const folder = join(out, `${quantize}-${name}`);
    const { manifest } = await compile(layout, { out: folder, weights: random, dtype, quantize });
    const options = { context: 100, chunk: 10 };
    const [ofLayout, ofFolder] = [planned(planModel(layout, portable, dtype, quantize), { ...options, quantize }), planned(planModelOf(manifest), options)];
    expect(ofFolder.weights).toEqual(ofLayout.weights);
    expect(ofFolder.bytes).toEqual(ofLayout.bytes);
    expect(ofFolder.roofline).toEqual(ofLayout.roofline);
    // To quantise what is quantised already changes nothing.
    expect(planned(planModelOf(manifest), { ...options, quantize }).bytes).toEqual(ofFolder.bytes);

    const onDisk = manifest.files.reduce((sum, { file }) => {
      const bytes = readFileSync(join(folder, file));
      return sum + bytes.length - 8 - Number(bytes.readBigUInt64LE(0));
    }, 0);
    expect(onDisk).toBe(ofLayout.bytes.weights);
    expect(manifest.weights.reduce((sum, w) => sum + w.bytes, 0)).toBe(onDisk);
  });

  test("equal input gives equal bytes", async () => {
    const layout = checkedLayout(Object.values(small)[0] as (typeof small)[string]);
    const [first, second] = [join(out, `${quantize}-first`), join(out, `${quantize}-second`)];
    await compile(layout, { out: first, weights: random, quantize });
    await compile(layout, { out: second, weights: random, quantize });
    for (const file of readdirSync(first)) expect(readFileSync(join(second, file)).equals(readFileSync(join(first, file))), file).toBe(true);
  });

  test("unchanged weights stay in the checkpoint's files, which are linked", async () => {
    const source = inRepository("examples", "tiny-jamba");
    const checkpoint = await importCheckpoint(source);
    const folder = join(out, `${quantize}-linked`);
    const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, quantize });
    for (const weight of manifest.weights) {
      const expected = weight.dtype === "int8" ? "weights.safetensors" : weight.scalesOf === undefined ? expect.stringMatching(/^weights\/model-0000\d-of-00002\.safetensors$/) : "scales.safetensors";
      expect(weight.file, weight.name).toEqual(expected);
      expect(weight.origin).toMatchObject(weight.dtype === "int8" || weight.scalesOf !== undefined ? { from: "checkpoint", cast: "bfloat16" } : { from: "checkpoint" });
      expect("cast" in weight.origin, weight.name).toBe(weight.dtype === "int8" || weight.scalesOf !== undefined);
    }
    for (const { file, from } of manifest.files.filter((f) => f.file.startsWith("weights/"))) {
      expect(["hard-link", "reflink", "copy"]).toContain(from);
      if (from === "hard-link") expect(statSync(join(folder, file)).ino).toBe(statSync(join(source, file.slice("weights/".length))).ino);
    }
  });
});

test("experts-int8 takes experts and dense MLPs; int8 every linear layer", async () => {
  const layout = checkedLayout((await importCheckpoint(inRepository("test", "fixtures", "hf", "jamba-block"))).spec);
  const int8 = async (quantize: (typeof modes)[number]) => {
    const { manifest } = await compile(layout, { out: join(out, `which-${quantize}`), weights: random, quantize });
    for (const { name, dtype, shape } of manifest.weights.filter((w) => w.dtype === "int8")) {
      expect(manifest.weights.find((w) => w.scalesOf === name), name).toMatchObject({ name: `${name}_scale`, dtype: "float32", shape: [shape[0]] });
      expect(dtype).toBe("int8");
    }
    return new Set(manifest.weights.filter((w) => w.dtype === "int8").map((w) => w.name.replace(/\.\d+\./g, ".N.").replace("experts.N", "experts")));
  };
  const experts = ["layers.N.mlp.gate_proj.weight", "layers.N.mlp.up_proj.weight", "layers.N.mlp.down_proj.weight"].flatMap((name) => [name, name.replace("mlp", "moe.experts")]);
  expect(await int8("experts-int8")).toEqual(new Set(experts));
  const attention = ["q", "k", "v", "o"].map((name) => `layers.N.attention.${name}_proj.weight`);
  const mamba = ["in", "x", "dt", "out"].map((name) => `layers.N.mamba.${name}_proj.weight`);
  expect(await int8("int8")).toEqual(new Set([...experts, ...attention, ...mamba, "lm_head.weight"]));
});

test("a matrix that is also the embedding is not quantised", async () => {
  const layout = checkedLayout((await importCheckpoint(inRepository("test", "fixtures", "hf", "jamba-dense"))).spec);
  const { manifest } = await compile(layout, { out: join(out, "tied"), weights: random, quantize: "int8" });
  expect(manifest.weights.find((w) => w.name === "embedding.weight")?.dtype).toBe("float32");
});

test("codes times scales are the checkpoint's weights, to half a scale", async () => {
  const source = inRepository("test", "fixtures", "hf", "jamba-block");
  const checkpoint = await importCheckpoint(source);
  const folder = join(out, "values");
  const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, quantize: "int8" });
  const original = readTensors(join(source, "model.safetensors"));
  for (const weight of manifest.weights.filter((w) => w.dtype === "int8")) {
    const scales = manifest.weights.find((w) => w.scalesOf === weight.name);
    const tensor = weight.origin.from === "checkpoint" && original.get(weight.origin.tensor);
    if (!scales || !tensor) throw new Error(`${weight.name} has no scales, or no source`);
    const codes = readFileSync(join(folder, weight.file)).subarray(weight.offset, weight.offset + weight.bytes);
    const perRow = readFileSync(join(folder, scales.file)).subarray(scales.offset, scales.offset + scales.bytes);
    const width = weight.shape[1] as number;
    tensor.values.forEach((value, i) => {
      const scale = perRow.readFloatLE(4 * Math.floor(i / width));
      if (Math.abs(value - codes.readInt8(i) * scale) > scale * 0.50002) throw new Error(`${weight.name}[${i}] is ${codes.readInt8(i)} × ${scale}, not ${value}`);
    });
  }
});

test("a checkpoint with NaN in a linear layer is refused, and nothing is left behind", async () => {
  const source = join(out, "damaged");
  mkdirSync(source);
  const fixture = inRepository("test", "fixtures", "hf", "jamba-block");
  for (const file of ["config.json", "model.safetensors"]) copyFileSync(join(fixture, file), join(source, file));
  const bytes = readFileSync(join(source, "model.safetensors"));
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + headerBytes)) as Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>;
  const name = "model.layers.0.feed_forward.down_proj.weight";
  const tensor = header[name];
  if (tensor?.dtype !== "F32") throw new Error(`${name} is ${tensor?.dtype}`);
  const file = openSync(join(source, "model.safetensors"), "r+");
  writeSync(file, Buffer.from(Float32Array.of(Number.NaN).buffer), 0, 4, 8 + headerBytes + tensor.data_offsets[0] + 4 * (tensor.shape[1] as number) * 5);
  closeSync(file);
  const checkpoint = await importCheckpoint(source);
  const folder = join(out, "never", "there");
  await expect(compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, quantize: "int8" })).rejects.toMatchObject({
    diagnostics: [{ code: "weights/not-finite", values: { weight: "layers.0.mlp.down_proj.weight", row: 5 } }],
  });
  expect(existsSync(join(out, "never"))).toBe(false);
});
