// What `layerweave bench` measures and how it is told: numbers that fit together, JSON, and every mistake it can be given.
import { expect, test } from "vitest";
import { backends } from "../support/backends.js";
import { codesOf, smallLayout, Workplace } from "./cli.js";

interface Phase {
  readonly tokens: number;
  readonly tokensPerSecond: { readonly mean: number; readonly deviation: number };
  readonly rooflineTokensPerSecond: number;
  readonly rooflineFraction: number;
  readonly binds: string;
}

interface Parts {
  readonly weights: number;
  readonly arena: number;
  readonly state: number;
  readonly logits: number;
  readonly total: number;
}

interface BenchJson {
  readonly schemaVersion: number;
  readonly machine: { readonly copyBytesPerSecond: number; readonly gemmOperationsPerSecond: number };
  readonly prefill: Phase;
  readonly decode: Phase;
  readonly timeToFirstTokenSeconds: { readonly mean: number; readonly deviation: number };
  readonly memory: { readonly planned: Parts; readonly measured: { readonly peak: Parts } | null };
  readonly peakResidentBytes: number;
}

const place = await Workplace.create({ "small.ts": smallLayout });
place.run(["compile", "small.ts", "-o", "compiled", "--random", "1"]);
place.run(["compile", "small.ts", "-o", "bare"]);

test.each(backends)("measures prefill and decode on the %s backend", (backend) => {
  const run = place.run(["bench", "compiled", "--prompt", "20", "--tokens", "5", "--batch", "2", "--repeat", "2", "--threads", "1", "--chunk", "16", "--backend", backend, "--json"]);
  expect(run).toMatchObject({ code: 0, stderr: "" });
  const result = JSON.parse(run.stdout) as BenchJson;
  expect(result).toMatchObject({ schemaVersion: 1, model: "small", backend: { name: backend }, threads: 1, batch: 2, chunk: 16, repeat: 2, prefill: { tokens: 20 }, decode: { tokens: 5 } });
  for (const { tokensPerSecond, rooflineTokensPerSecond, rooflineFraction, binds } of [result.prefill, result.decode]) {
    expect(tokensPerSecond.mean).toBeGreaterThan(0);
    expect(tokensPerSecond.deviation).toBeGreaterThan(0);
    expect(rooflineFraction).toBeCloseTo(tokensPerSecond.mean / rooflineTokensPerSecond, 10);
    expect(["memory", "arithmetic"]).toContain(binds);
  }
  // The two are means of the same times and of their inverses, and the mean of inverses is never the smaller one.
  expect(result.prefill.tokensPerSecond.mean * result.timeToFirstTokenSeconds.mean).toBeGreaterThanOrEqual(2 * 20 - 1e-6);
  expect(result.machine.copyBytesPerSecond).toBeGreaterThan(1e8);
  expect(result.machine.gemmOperationsPerSecond).toBeGreaterThan(1e8);
  const { planned, measured } = result.memory;
  expect(planned.total).toBe(planned.weights + planned.arena + planned.state + planned.logits);
  if (backend === "portable") expect(measured).toBeNull();
  else expect(Math.abs((measured?.peak.total ?? 0) / planned.total - 1)).toBeLessThan(0.05);
  expect(result.peakResidentBytes).toBeGreaterThan(planned.total);
});

test("one repetition has no deviation, and the table says what was measured", () => {
  const run = place.run(["bench", "compiled", "--prompt", "4", "--tokens", "2", "--repeat", "1", "--threads", "1"]);
  expect(run.code).toBe(0);
  expect(run.stdout).toMatch(/^small: (native|portable) backend, .*, 1 thread, batch 1, chunks of 4, 1 repetitions$/m);
  expect(run.stdout).toMatch(/^this machine: copy \S+ [MG]B\/s \(read and written\), float32 matrix product \S+ [MG] operations\/s$/m);
  expect(run.stdout).toMatch(/^prefill +4 +\d+\.\d ± 0\.0 +\d+\.\d +\d+ % +(memory|arithmetic)$/m);
  expect(run.stdout).toMatch(/^decode +2 +\d+\.\d ± 0\.0 +\d+\.\d +\d+ % +(memory|arithmetic)$/m);
  expect(run.stdout).toMatch(/^first token after /m);
  expect(run.stdout).toMatch(/^model memory: .* planned/m);
});

test("decoding is measured with a longer cache than the prompt's when asked", () => {
  const run = place.run(["bench", "compiled", "--prompt", "4", "--depth", "100", "--tokens", "2", "--repeat", "1", "--threads", "1", "--batch", "2"]);
  expect(run.code).toBe(0);
  expect(run.stdout).toMatch(/batch 2, chunks of 100/);
  expect(run.stdout).toMatch(/^decoded with 100 tokens in the cache$/m);
});

test.each([
  ["a prompt of no tokens", "compiled", ["--prompt", "0"], "plan/bad-count", 2],
  ["no tokens to decode", "compiled", ["--tokens", "0"], "plan/bad-count", 2],
  ["a prompt in words", "compiled", ["--prompt", "long"], "plan/bad-count", 2],
  ["half a batch", "compiled", ["--batch", "0.5"], "plan/bad-count", 2],
  ["no repetition", "compiled", ["--repeat", "0"], "plan/bad-count", 2],
  ["no depth", "compiled", ["--depth", "0"], "plan/bad-count", 2],
  ["a depth beyond the context", "compiled", ["--prompt", "4", "--depth", "127", "--tokens", "2"], "cli/bench-beyond-context", 2],
  ["no threads", "compiled", ["--threads", "0"], "plan/bad-count", 2],
  ["an empty chunk", "compiled", ["--chunk", ""], "plan/bad-count", 2],
  ["more tokens than the context", "compiled", ["--prompt", "100", "--tokens", "29"], "cli/bench-beyond-context", 2],
  ["a budget without a unit", "compiled", ["--prompt", "4", "--tokens", "2", "--budget", "80"], "plan/bad-bytes", 2],
  ["too small a budget", "compiled", ["--prompt", "4", "--tokens", "2", "--budget", "1KB"], "plan/over-budget", 4],
  ["a backend that is none", "compiled", ["--backend", "cuda"], "cli/usage", 2],
  ["a folder that is not there", "absent", [], "manifest/missing", 1],
  ["a layout", "small.ts", [], "manifest/missing", 1],
  ["a folder without weights", "bare", ["--prompt", "4", "--tokens", "2"], "runtime/no-weights", 1],
])("%s", (_, folder, args, code, exitCode) => {
  const run = place.run(["bench", folder, ...args, "--json"]);
  expect(codesOf(run)).toEqual([code]);
  expect(run.code).toBe(exitCode);
});
