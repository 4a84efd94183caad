import { describe, expect, test } from "vitest";
import { LayerweaveError } from "../../core/diagnostics.js";
import { deviceNamed, parseDevice } from "../../core/plan/devices.js";
import { formatBinaryBytes, formatBytes, formatCount, parseBytes, parseCount } from "../../core/plan/sizes.js";
import { exampleModel, planned } from "./layouts.js";

/** Code, exit code and message of what `run` throws. */
function refusal(run: () => unknown): { code: string; exit: number; message: string } {
  try {
    run();
  } catch (error) {
    if (error instanceof LayerweaveError) return { code: error.diagnostics[0]?.code ?? "", exit: error.exitCode, message: error.diagnostics[0]?.message ?? "" };
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("sizes", () => {
  test.each([
    ["80GB", 80e9],
    ["80 GB", 80e9],
    ["80GiB", 80 * 2 ** 30],
    ["1.5TB", 1.5e12],
    ["512MiB", 512 * 2 ** 20],
    ["16KB", 16_000],
    ["123B", 123],
  ])("%s is %i bytes", (text, bytes) => expect(parseBytes(text, "--budget")).toBe(bytes));

  test.each(["80 gigs", "80", "GB", "-1GB", "0GB", "1e3GB", "80G", "80gb", "", "NaNGB", "99999999TB"])("%s is refused", (text) => {
    expect(refusal(() => parseBytes(text, "--budget"))).toMatchObject({ code: "plan/bad-bytes", exit: 2 });
  });

  test.each([
    ["256K", 262_144],
    ["8K", 8192],
    ["1M", 1_048_576],
    ["0.5K", 512],
    ["3000", 3000],
    ["2147483647", 2 ** 31 - 1],
  ])("%s is %i tokens", (text, count) => expect(parseCount(text, "--context")).toBe(count));

  test.each(["0", "-5", "2147483648", "2048M", "1.5", "0.3K", "8k", "many", "", "1e6"])("%s tokens are refused", (text) => {
    expect(refusal(() => parseCount(text, "--context"))).toMatchObject({ code: "plan/bad-count", exit: 2 });
  });

  test("printing names the unit", () => {
    expect([formatBytes(80e9), formatBinaryBytes(4 * 2 ** 30), formatBytes(999), formatBytes(1.38e6)]).toEqual(["80.0 GB", "4.00 GiB", "999 B", "1.38 MB"]);
    expect([formatCount(262_144), formatCount(3000), formatCount(2 ** 20), formatCount(12)]).toEqual(["256K", "3000", "1M", "12"]);
  });
});

describe("options of a plan", () => {
  test.each([{ context: 0 }, { context: 2 ** 31 }, { context: 1.5 }, { batch: 0 }, { chunk: 0 }])("%o is refused", async (options) => {
    const jamba = await exampleModel("jamba-v0.1");
    expect(refusal(() => planned(jamba, options))).toMatchObject({ code: "plan/bad-count", exit: 2 });
  });

  test("a CPU needs a budget", async () => {
    const jamba = await exampleModel("jamba-v0.1");
    expect(refusal(() => planned(jamba, { device: deviceNamed("cpu") }))).toMatchObject({ code: "plan/no-budget", exit: 2 });
    expect(planned(jamba, { device: deviceNamed("cpu"), budget: 1e12 }).budget.bytes).toBe(1e12);
  });
});

describe("devices", () => {
  test("names", () => {
    expect(["h100-80gb", "h200-141gb", "a100-80gb", "cpu"].map((name) => deviceNamed(name).name)).toEqual(["h100-80gb", "h200-141gb", "a100-80gb", "cpu"]);
    const unknown = refusal(() => deviceNamed("h100"));
    expect(unknown).toMatchObject({ code: "plan/unknown-device", exit: 2 });
    expect(unknown.message).toContain("h100-80gb");
  });

  test("a profile of one's own", () => {
    const own = { ...deviceNamed("a100-80gb"), name: "my-card" };
    expect(parseDevice(JSON.stringify(own), "card.json")).toEqual(own);
  });

  test("everything that is wrong with a profile is said at once", () => {
    const wrong = { ...deviceNamed("a100-80gb"), bandwidth: undefined, runtime: undefined, vectorRate: { value: -1, source: "guess" }, speed: 3 };
    const missing = refusal(() => parseDevice(JSON.stringify(wrong), "card.json"));
    expect(missing).toMatchObject({ code: "plan/bad-device-profile", exit: 2 });
    for (const field of ["bandwidth", "runtime", "vectorRate", "speed"]) expect(missing.message).toContain(field);
    expect(refusal(() => parseDevice("{", "card.json"))).toMatchObject({ code: "plan/bad-device-profile", exit: 2 });
    expect(refusal(() => parseDevice("[]", "card.json"))).toMatchObject({ code: "plan/bad-device-profile", exit: 2 });
  });

  test("a profile without the rate it computes with", () => {
    const card = deviceNamed("a100-80gb");
    expect(refusal(() => parseDevice(JSON.stringify({ ...card, matrixRates: { float32: card.matrixRates.float32 } }), "card.json"))).toMatchObject({ code: "plan/no-rate", exit: 2 });
  });
});
