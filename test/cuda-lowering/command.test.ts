import { expect, test } from "vitest";
import { Workplace } from "../cli/cli.js";
import { inRepository } from "../support/folders.js";

const checkpoint = inRepository("test", "fixtures", "hf", "jamba-block");
const place = await Workplace.create();
const compile = (...options: readonly string[]) => place.run(["compile", checkpoint, "-o", "out", "--target", "cuda", ...options]);

test("a folder for CUDA is planned with the bytes it stores, on devices with kernels alone", () => {
  expect(compile("--quantize", "int8")).toMatchObject({ code: 0, stdout: expect.stringMatching(/model\.onnx +\S+ \S+ +opset 18, computes in bfloat16/) });
  const compiled = JSON.parse(place.run(["compile", checkpoint, "-o", "again", "--target", "cuda", "--quantize", "int8", "--json"]).stdout) as { files: { file: string; bytes: number }[]; graph: { functions: string[]; kernels: string[] } };
  expect(compiled.graph.functions).toEqual([]);
  expect(compiled.graph.kernels).toEqual(["AttentionInner", "PackedLinear", "PackedMambaInner", "PackedMoE", "ResidualNorm", "SelectTokens"].map((op) => `ai.layerweave::${op}`));

  const planned = place.run(["plan", "out", "--device", "h100-80gb", "--json"]);
  expect(planned.code).toBe(0);
  const { bytes, kvDtype } = JSON.parse(planned.stdout) as { bytes: Record<"weights" | "activations" | "weightCopies" | "stateCopies" | "convState" | "ssmState", number>; kvDtype: string };
  expect(kvDtype).toBe("bfloat16");
  const stored = compiled.files.reduce((sum, { bytes }) => sum + bytes, 0);
  // Headers of the two safetensors files are all that is not weights.
  expect(bytes.weights).toBeLessThan(stored);
  expect(bytes.weights).toBeGreaterThan(stored - 32_768);
  // A prefill computes recurrent state beside what it reads.
  expect(bytes).toMatchObject({ weightCopies: 0, stateCopies: bytes.convState + bytes.ssmState, activations: expect.any(Number) });

  const onCpu = place.run(["plan", "out", "--device", "cpu", "--budget", "1GiB"]);
  expect(onCpu.code).toBe(1);
  expect(onCpu.stderr).toContain("plan/needs-kernels");
});

test.each([
  [["--dtype", "float32"], "target/dtype"],
  [["--print-ir-after", "attach-bodies"], "cli/no-such-pass"],
] as const)("%j is refused and nothing is written", (options, code) => {
  const run = place.run(["compile", checkpoint, "-o", "refused", "--target", "cuda", ...options]);
  expect(run.code).toBe(2);
  expect(run.stderr).toContain(code);
  expect(place.entries()).not.toContain("refused");
});

test("the IR of its own stages is printed", () => {
  const run = place.run(["compile", checkpoint, "-o", "printed", "--target", "cuda", "--dtype", "float16", "--print-ir-after", "pack-weights"]);
  expect(run.code).toBe(0);
  expect(run.stdout).toMatch(/= ai\.layerweave::PackedMoE\(/);
  expect(run.stdout).toMatch(/present\.\d+\.ssm_state float32\[/);
});
