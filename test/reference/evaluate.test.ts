import { describe, expect, it } from "vitest";
import { Diagnostics } from "../../core/diagnostics.js";
import { resolveLayout } from "../../dsl/resolve.js";
import { checkpointReference, checkpoints, checkpointWeights } from "./checkpoints.js";
import { relativeError } from "./compare.js";
import { evaluate } from "./evaluate.js";

describe("the float64 evaluator agrees with transformers", () => {
  it.each(Object.keys(checkpoints))("%s: logits of the prompt and of each greedy step", (name) => {
    const checkpoint = checkpoints[name]!;
    const found = new Diagnostics();
    const layout = resolveLayout(checkpoint.layout, found);
    found.throwIfErrors();
    const weights = checkpointWeights(name, checkpoint);
    const reference = checkpointReference(name);
    const [batch, prompt] = reference.input_ids.shape as [number, number];
    const steps = reference.generated_ids.shape[1]!;
    const vocab = layout.vocabSize;
    for (let b = 0; b < batch; b++) {
      const ids = reference.input_ids.values.subarray(b * prompt, (b + 1) * prompt);
      const generated = reference.generated_ids.values.subarray(b * steps, (b + 1) * steps);
      const { logits } = evaluate(layout, weights, [...ids, ...generated.subarray(0, -1)]);
      const flat = (from: number, to: number) => logits.slice(from, to).flatMap((row) => [...row]);
      expect(relativeError(flat(0, prompt), reference.logits.values.subarray(b * prompt * vocab, (b + 1) * prompt * vocab))).toBeLessThan(1e-5);
      expect(relativeError(flat(prompt - 1, prompt - 1 + steps), reference.step_logits.values.subarray(b * steps * vocab, (b + 1) * steps * vocab))).toBeLessThan(1e-5);
      expect(logits.slice(prompt - 1).map((row) => row.indexOf(Math.max(...row)))).toEqual([...generated]);
    }
  });
});
