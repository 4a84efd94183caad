import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { storageDtypes } from "../../core/dtype.js";
import { initialize, type InitializedTensor } from "../../compiler/weights/random.js";
import { converted, initialized, widened } from "./elements.js";

const tensor = (change: Partial<InitializedTensor> = {}): InitializedTensor => ({
  name: "layers.0.mamba.in_proj.weight",
  shape: [64, 48],
  initializer: { kind: "uniform", std: 0.02 },
  ...change,
});
const valuesOf = (of: InitializedTensor, seed = 7): Float32Array => initialized(of, seed);
const bytesOf = (of: InitializedTensor, seed = 7): Uint8Array => new Uint8Array(valuesOf(of, seed).buffer);
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

describe("the same on every machine", () => {
  // Also computed once by a separate implementation, in Python integers and 40-digit decimals; a change here changes every random model.
  test.each<[string, InitializedTensor, string]>([
    ["uniform", tensor(), "e22375f7a69651b2c1419cc70ff56eff9335f13721fd70ebd63fdfa24b23bfa3"],
    ["uniform, the streams after the first", tensor({ shape: [3, 20_001] }), "e6b7971e4dcaa09589f903d46d90e42a9aabe7c31b8ccbc51c79d4d0435d8751"],
    ["s4d", tensor({ initializer: { kind: "s4d" } }), "ad0deeaa914e48a846d24c595480d9057107027a796198ca54ce0e213ede1f0b"],
    ["dt-bias", tensor({ shape: [8192], initializer: { kind: "dt-bias", min: 0.001, max: 0.1 } }), "87b064b2293d1b4b9f9aa15a46c25ec981778a75937266f4e7145732cca90508"],
  ])("%s", (_, of, golden) => {
    expect(sha256(bytesOf(of))).toBe(golden);
  });

  test("uniform, in bfloat16", () => {
    expect(sha256(converted(bytesOf(tensor()), "float32", "bfloat16"))).toBe("fc1544cd94b02012656baf1eced34dfdaff93f3687234684841e7685093bf3c1");
  });

  test("seed and name change the values", () => {
    const golden = sha256(bytesOf(tensor()));
    expect(sha256(bytesOf(tensor(), 8))).not.toBe(golden);
    expect(sha256(bytesOf(tensor({ name: "layers.1.mamba.in_proj.weight" })))).not.toBe(golden);
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

  test("neighbours, streams, and tensors whose names or seeds are neighbours, are uncorrelated", () => {
    const others = [values.subarray(1), values.subarray(1 << 14), valuesOf(tensor({ shape: [1_000_000] }), 8), valuesOf(tensor({ shape: [1_000_000], name: "layers.0.mamba.in_proj.weighu" }))];
    for (const other of others) {
      const count = other.length;
      const correlation = other.reduce((sum, x, i) => sum + x * (values[i] ?? 0), 0) / count / std ** 2;
      expect(Math.abs(correlation)).toBeLessThan(4 / Math.sqrt(count));
    }
  });
});

test("constant, zero and one exactly in every dtype", () => {
  for (const value of [0, 1])
    for (const dtype of storageDtypes) expect(new Set(widened(converted(bytesOf(tensor({ initializer: { kind: "constant", value } })), "float32", dtype), dtype))).toEqual(new Set([value]));
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

test.each([["uniform", { kind: "uniform", std: 0.02 }], ["s4d", { kind: "s4d" }]] as const)("%s: any run of elements is what it is in the whole", (_, initializer) => {
  const of = tensor({ shape: [3, 33_001], initializer });
  const whole = valuesOf(of);
  for (const [first, count] of [[0, 5], [1, 3], [16_383, 2], [16_384, 16_384], [16_385, 40_000], [33_000, 2], [99_002, 1], [50_000, 0]] as const) {
    const values = new Float32Array(count);
    initialize(of, 7, values, first);
    expect(values, `${first}`).toEqual(whole.slice(first, first + count));
  }
});

test("scalars and empty tensors", () => {
  expect(bytesOf(tensor({ shape: [] })).length).toBe(4);
  expect(bytesOf(tensor({ shape: [0, 4] })).length).toBe(0);
});
