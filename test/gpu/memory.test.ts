// What the plan says a model takes of a card, beside what the driver says: each model in a process that has the card to itself.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { describe, test } from "node:test";
import type { ModelMemory } from "layerweave/runtime";
import { compiled, inRepository, onCard } from "./machine.js";

interface Bench {
  readonly plan: { readonly total: number; readonly runtime: number };
  readonly memory: ModelMemory;
}

/** Of the whole: what rounding up, and kernels that CUDA loads when they are first run, may make of it. */
const tolerance = 0.02;

const usedNow = (): number => Number(execFileSync("nvidia-smi", ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"], { encoding: "utf8" })) * 2 ** 20;

describe("plan and driver", onCard, () => {
  for (const [name, ...options] of [
    ["memory-dense", "--prompt", "4096"],
    ["memory-window", "--prompt", "8192"],
    ["memory-mamba", "--prompt", "4096", "--batch", "4", "--chunk", "1024"],
    ["memory-experts", "--prompt", "4096"],
    ["memory-hybrid", "--prompt", "2048", "--batch", "2"],
  ] as const)
    test(`${name} ${options.join(" ")}`, (t) => {
      const others = usedNow();
      const { plan, memory } = JSON.parse(execFileSync(process.execPath, [inRepository("dist", "cli", "main.js"), "bench", compiled(name, "bfloat16"), "--device", "cuda:0", "--json", "--tokens", "8", "--repeat", "1", ...options], { encoding: "utf8" })) as Bench;
      assert.ok(memory.card && memory.measured);
      const { planned, measured: { peak }, card } = memory; // prettier-ignore
      const driver = card.usedNow - others;
      const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1);
      t.diagnostic(
        `${name}: plan ${megabytes(plan.total)} driver ${megabytes(driver)} (${(100 * (plan.total / driver - 1)).toFixed(2)} %), others ${megabytes(others)}; planned/held weights ${megabytes(planned.weights)}/${megabytes(peak.weights)} arena ${megabytes(planned.arena)}/${megabytes(peak.arena)} reserved ${megabytes(card.arenaReserved)} state ${megabytes(planned.state)}/${megabytes(peak.state)} logits ${megabytes(planned.logits)}/${megabytes(peak.logits)}; runtime ${megabytes(plan.runtime)}/${megabytes(driver - card.arenaReserved - peak.weights - peak.state - peak.logits)}, before ${megabytes(card.usedBefore - others)}`,
      );
      assert.equal(peak.weights, planned.weights);
      assert.equal(peak.state, planned.state);
      assert.ok(Math.abs(plan.total / driver - 1) <= tolerance, `plan ${plan.total}, driver ${driver}`);
    });
});
