import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { candidates, randomSource, Sampler } from "#dist/runtime/sampling.js";

interface Options {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
}

function softmax(logits: readonly number[]): number[] {
  const max = Math.max(...logits);
  const weights = logits.map((x) => Math.exp(x - max));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

/** The processors of transformers one after another, each written out on its own. */
function reference(logits: readonly number[], { temperature, topK, topP, minP }: Options): number[] {
  let scores = logits.map((x) => x / temperature);
  if (topK > 0) {
    const kth = [...scores].sort((a, b) => b - a)[Math.min(topK, scores.length) - 1] ?? -Infinity;
    scores = scores.map((x) => (x < kth ? -Infinity : x));
  }
  if (topP < 1) {
    const probabilities = softmax(scores);
    const order = probabilities.map((_, i) => i).sort((a, b) => (probabilities[b] ?? 0) - (probabilities[a] ?? 0) || a - b);
    let mass = 0;
    const kept = new Set<number>();
    for (const [rank, i] of order.entries()) {
      if (rank === 0 || mass < topP) kept.add(i);
      mass += probabilities[i] ?? 0;
    }
    scores = scores.map((x, i) => (kept.has(i) ? x : -Infinity));
  }
  if (minP > 0) {
    const probabilities = softmax(scores);
    const least = minP * Math.max(...probabilities);
    scores = scores.map((x, i) => ((probabilities[i] ?? 0) < least ? -Infinity : x));
  }
  return softmax(scores);
}

/** Logits far enough apart that rounding can't move a token over a threshold. */
const logits = fc.uniqueArray(fc.integer({ min: -60, max: 60 }), { minLength: 1, maxLength: 40 }).map((xs) => xs.map((x) => x / 8));
const resolved = { repetitionPenalty: 1, temperature: 1, topK: 0, topP: 1, minP: 0, seed: 0 };

describe("candidates", () => {
  test("are what transformers' processors leave, with the same probabilities", () => {
    const options = fc.record({
      temperature: fc.constantFrom(0.3, 0.7, 1, 1.9),
      topK: fc.constantFrom(0, 1, 3, 10, 100),
      topP: fc.constantFrom(1, 0.951, 0.513, 0.1, 1e-6),
      minP: fc.constantFrom(0, 0.0513, 0.313, 1),
    });
    fc.assert(
      fc.property(logits, options, (xs, o) => {
        const { ids, probabilities } = candidates(Float32Array.from(xs), o);
        const dense = xs.map(() => 0);
        ids.forEach((id, i) => (dense[id] = probabilities[i] ?? NaN));
        reference(xs, o).forEach((p, i) => expect(dense[i]).toBeCloseTo(p, 12));
      }),
      { numRuns: 2000 },
    );
  });

  test("of equal tokens top-k keeps all, top-p as many as it needs", () => {
    const equal = new Float32Array(8);
    expect([...candidates(equal, { ...resolved, topK: 2 }).ids]).toHaveLength(8);
    expect([...candidates(equal, { ...resolved, topP: 0.5 }).ids]).toEqual([0, 1, 2, 3]);
    expect([...candidates(equal, { ...resolved, minP: 1 }).ids]).toHaveLength(8);
  });
});

describe("Sampler", () => {
  test("draws tokens as often as their probabilities say", () => {
    const xs = [2, 1, 0, -1, 0.5];
    const sampler = new Sampler({ ...resolved, temperature: 0.8, topK: 4, seed: 42 }, []);
    const draws = 40_000;
    const counts = xs.map(() => 0);
    for (let i = 0; i < draws; i++) {
      const id = sampler.next(Float32Array.from(xs), 0, 0);
      counts[id] = (counts[id] ?? 0) + 1;
    }
    const expected = reference(xs, { ...resolved, temperature: 0.8, topK: 4 }).map((p) => p * draws);
    expect(counts[3]).toBe(0);
    const chiSquared = counts.reduce((sum, n, i) => (expected[i] ? sum + (n - expected[i]) ** 2 / expected[i] : sum), 0);
    // 3 degrees of freedom: beyond 16.3 once in a thousand seeds.
    expect(chiSquared).toBeLessThan(16.3);
  });

  test("temperature 0 takes the best token, the first of equals", () => {
    expect(new Sampler({ ...resolved, temperature: 0 }, []).next(Float32Array.of(1, 3, 3, 2), 0, 0)).toBe(1);
  });

  test("the repetition penalty divides positive and multiplies negative logits of seen tokens, once each", () => {
    const sampler = new Sampler({ ...resolved, temperature: 0, repetitionPenalty: 2 }, [0, 0, 1]);
    const xs = Float32Array.of(4, -1, 2.5, -1.5);
    expect(sampler.next(xs, 0, 0)).toBe(2);
    expect([...xs]).toEqual([2, -2, 2.5, -1.5]);
    // Token 2 was generated, so it now counts as seen.
    expect(sampler.next(Float32Array.of(4, -1, 2.5, -1.5), 0, 1)).toBe(0);
  });

  test.each([
    ["a NaN", Float32Array.of(1, NaN, 2)],
    ["infinity", Float32Array.of(1, Infinity)],
    ["nothing finite", Float32Array.of(-Infinity, -Infinity)],
  ])("logits with %s are refused", (_, xs) => {
    expect(() => new Sampler(resolved, []).next(xs, 3, 9)).toThrow("position 9 of row 3");
  });
});

describe("randomSource", () => {
  test("gives the same numbers on every machine", () => {
    const firstThree = (seed: number): number[] => {
      const draw = randomSource(seed);
      return [draw(), draw(), draw()];
    };
    expect(firstThree(1234)).toEqual([0.9912064165204308, 0.3518547222801218, 0.37485602503131454]);
    expect(firstThree(Number.MAX_SAFE_INTEGER)).toEqual([0.6562382180679154, 0.18831742007267316, 0.35549426037926246]);
  });

  test("is uniform, and differs between seeds that differ in any bit", () => {
    const draw = randomSource(7);
    const buckets = new Array<number>(16).fill(0);
    for (let i = 0; i < 16_000; i++) {
      const x = draw();
      expect(x >= 0 && x < 1).toBe(true);
      const bucket = Math.floor(x * 16);
      buckets[bucket] = (buckets[bucket] ?? 0) + 1;
    }
    // 15 degrees of freedom: beyond 37.7 once in a thousand seeds.
    expect(buckets.reduce((sum, n) => sum + (n - 1000) ** 2 / 1000, 0)).toBeLessThan(37.7);
    const firsts = Array.from({ length: 53 }, (_, bit) => randomSource(2 ** bit)());
    expect(new Set(firsts).size).toBeGreaterThan(51);
  });
});
