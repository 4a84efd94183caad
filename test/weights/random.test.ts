import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { storageDtypes } from "../../core/dtype.js";
import { convertElements, toFloat32 } from "../../compiler/weights/convert.js";
import { initialize, type InitializedTensor } from "../../compiler/weights/random.js";
import { bytesPerElement } from "../../core/dtype.js";

const tensor = (change: Partial<InitializedTensor> = {}): InitializedTensor => ({
  name: "layers.0.mamba.in_proj.weight",
  dtype: "float32",
  shape: [64, 48],
  initializer: { kind: "uniform", std: 0.02 },
  ...change,
});
const bytesOf = (of: InitializedTensor, seed = 7): Uint8Array => Buffer.concat([...initialize(of, seed)]);
const valuesOf = (of: InitializedTensor, seed = 7): Float32Array => toFloat32(Uint8Array.from(bytesOf(of, seed)), of.dtype);
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

describe("the same on every machine", () => {
  // Also computed once by a separate implementation, in Python integers and 40-digit decimals; a change here changes every random model.
  test.each<[string, InitializedTensor, string]>([
    ["uniform", tensor(), "e22375f7a69651b2c1419cc70ff56eff9335f13721fd70ebd63fdfa24b23bfa3"],
    ["uniform bfloat16", tensor({ dtype: "bfloat16" }), "fc1544cd94b02012656baf1eced34dfdaff93f3687234684841e7685093bf3c1"],
    ["s4d", tensor({ initializer: { kind: "s4d" } }), "ad0deeaa914e48a846d24c595480d9057107027a796198ca54ce0e213ede1f0b"],
    ["dt-bias", tensor({ shape: [8192], initializer: { kind: "dt-bias", min: 0.001, max: 0.1 } }), "87b064b2293d1b4b9f9aa15a46c25ec981778a75937266f4e7145732cca90508"],
  ])("%s", (_, of, golden) => {
    expect(sha256(bytesOf(of))).toBe(golden);
  });

  test("seed and name change the values; the other tensors and the dtype do not", () => {
    const golden = sha256(bytesOf(tensor()));
    expect(sha256(bytesOf(tensor(), 8))).not.toBe(golden);
    expect(sha256(bytesOf(tensor({ name: "layers.1.mamba.in_proj.weight" })))).not.toBe(golden);
    for (const dtype of storageDtypes) expect(bytesOf(tensor({ dtype }))).toEqual(Buffer.from(convertElements(Uint8Array.from(bytesOf(tensor())), "float32", dtype)));
  });
});

describe("uniform", () => {
  const std = 0.02;
  const values = valuesOf(tensor({ shape: [1_000_000] }));

  test("mean, deviation and range", () => {
    const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
    const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan((4 * std) / Math.sqrt(values.length));
    expect(Math.sqrt(variance) / std).toBeCloseTo(1, 2);
    const bound = Math.fround(std * Math.sqrt(3));
    const low = values.reduce((min, x) => Math.min(min, x));
    const high = values.reduce((max, x) => Math.max(max, x));
    expect(low).toBeGreaterThanOrEqual(-bound);
    expect(high).toBeLessThan(bound);
    expect(high - low).toBeGreaterThan(1.9999 * bound);
  });

  test("every 64th of the range is equally likely (chi-squared)", () => {
    const bound = std * Math.sqrt(3);
    const counts = new Array<number>(64).fill(0);
    for (const x of values) {
      const bin = Math.min(63, Math.floor(((x + bound) / (2 * bound)) * 64));
      counts[bin] = (counts[bin] ?? 0) + 1;
    }
    const expected = values.length / 64;
    // 99.99 % of a chi-squared variable with 63 degrees of freedom lie below 113.
    expect(counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0)).toBeLessThan(113);
  });

  test("neighbours, and tensors whose names or seeds are neighbours, are uncorrelated", () => {
    const others = [values.subarray(1), valuesOf(tensor({ shape: [1_000_000] }), 8), valuesOf(tensor({ shape: [1_000_000], name: "layers.0.mamba.in_proj.weighu" }))];
    for (const other of others) {
      const count = other.length;
      const correlation = other.reduce((sum, x, i) => sum + x * (values[i] ?? 0), 0) / count / std ** 2;
      expect(Math.abs(correlation)).toBeLessThan(4 / Math.sqrt(count));
    }
  });
});

test("constant, zero and one exactly in every dtype", () => {
  for (const dtype of storageDtypes) for (const value of [0, 1]) expect(new Set(valuesOf(tensor({ dtype, initializer: { kind: "constant", value } })))).toEqual(new Set([value]));
});

test("s4d: ln(n + 1) along the last axis, in every row", () => {
  const values = valuesOf(tensor({ shape: [5, 3, 16], initializer: { kind: "s4d" } }));
  expect(values.length).toBe(240);
  values.forEach((x, i) => expect(x).toBe(Math.fround(Math.log((i % 16) + 1))));
});

test("dt-bias: softplus gives dt back, evenly spread in log space", () => {
  const values = valuesOf(tensor({ shape: [2, 100], initializer: { kind: "dt-bias", min: 0.001, max: 0.1 } }));
  values.forEach((x, i) => {
    const dt = Math.log1p(Math.exp(x));
    expect(Math.log10(dt)).toBeCloseTo(-3 + (2 * ((i % 100) + 0.5)) / 100, 5);
  });
});

test("chunks of at most 4 MiB, whose rows go on across the cut", () => {
  const of = tensor({ shape: [3, 1_000_003], initializer: { kind: "s4d" } });
  const chunks = [...initialize(of, 7)];
  expect(chunks.map(({ length }) => length)).toEqual([4 << 20, 4 << 20, of.shape.reduce((bytes, extent) => bytes * extent, bytesPerElement[of.dtype]) - (8 << 20)]);
  const values = toFloat32(Buffer.concat(chunks), "float32");
  for (const at of [0, 1_000_002, 1_000_003, (1 << 20) - 1, 1 << 20, (2 << 20) + 5]) expect(values[at]).toBe(Math.fround(Math.log((at % 1_000_003) + 1)));
  // The generator does not start again with each chunk.
  const uniform = [...initialize(tensor({ shape: [(1 << 20) + 100] }), 7)];
  expect(uniform[1]).not.toEqual(uniform[0]?.subarray(0, 400));
});

test("scalars and empty tensors", () => {
  expect(bytesOf(tensor({ shape: [] })).length).toBe(4);
  expect(bytesOf(tensor({ shape: [0, 4] })).length).toBe(0);
});
