import { Diagnostics, fail } from "../core/diagnostics.js";
import { runtimeDiagnostics } from "./diagnostics.js";

/** How the next token is chosen from the logits. Applied in the order of the fields, as transformers does. */
export interface SamplingOptions {
  /** Logits of tokens seen before, prompt included, are divided by this where positive and multiplied where negative. Default 1: none. */
  readonly repetitionPenalty?: number;
  /** Logits are divided by this. Default 0: always the best token, and the fields below play no part. */
  readonly temperature?: number;
  /** Only the k best tokens (and those tied with the last of them) stay. Default 0: all. */
  readonly topK?: number;
  /** Only the fewest tokens whose probabilities reach p together stay. Default 1: all. */
  readonly topP?: number;
  /** Only tokens at least this fraction as probable as the best one stay. Default 0: all. */
  readonly minP?: number;
  /** Start of the random sequence: the same seed gives the same text on every machine. Default: drawn anew. */
  readonly seed?: number;
}

/** Options with nothing left open. */
export type ResolvedSampling = Required<SamplingOptions>;

const maxSeed = Number.MAX_SAFE_INTEGER;

/** Reports what is wrong with sampling options and fills in the defaults. */
export function resolveSampling(options: SamplingOptions, found: Diagnostics): ResolvedSampling {
  const resolved: ResolvedSampling = {
    repetitionPenalty: options.repetitionPenalty ?? 1,
    temperature: options.temperature ?? 0,
    topK: options.topK ?? 0,
    topP: options.topP ?? 1,
    minP: options.minP ?? 0,
    seed: options.seed ?? Math.floor(Math.random() * 2 ** 32),
  };
  const expect = (option: keyof ResolvedSampling, holds: boolean, expected: string): void => {
    if (!holds) found.report(runtimeDiagnostics["bad-option"], { option, expected, found: String(resolved[option]) });
  };
  expect("repetitionPenalty", resolved.repetitionPenalty > 0 && resolved.repetitionPenalty < Infinity, "a number above 0");
  expect("temperature", resolved.temperature >= 0 && resolved.temperature < Infinity, "0 (greedy) or a positive number");
  expect("topK", Number.isInteger(resolved.topK) && resolved.topK >= 0, "0 (all tokens) or a positive integer");
  expect("topP", resolved.topP > 0 && resolved.topP <= 1, "above 0 and at most 1");
  expect("minP", resolved.minP >= 0 && resolved.minP <= 1, "from 0 to 1");
  expect("seed", Number.isInteger(resolved.seed) && resolved.seed >= 0 && resolved.seed <= maxSeed, `an integer from 0 to ${maxSeed}`);
  return resolved;
}

/**
 * xoshiro128** (Blackman and Vigna, 2018) with its state filled by a Weyl sequence through
 * MurmurHash3's finaliser: integer arithmetic only, so it gives
 * the same sequence on every machine.
 * @returns a function that draws uniformly from [0, 1) with 53 random bits.
 */
export function randomSource(seed: number): () => number {
  let mix = seed | 0;
  const next32 = (): number => {
    mix = (mix + 0x9e3779b9) | 0;
    let z = Math.imul(mix ^ (mix >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return z ^ (z >>> 16);
  };
  mix = next32() ^ Math.floor(seed / 2 ** 32);
  let [a, b, c, d] = [next32(), next32(), next32(), next32()];
  const rotate = (x: number, by: number): number => (x << by) | (x >>> (32 - by));
  const draw = (): number => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9);
    const t = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= t;
    d = rotate(d, 11);
    return result >>> 0;
  };
  return () => ((draw() >>> 5) * 2 ** 26 + (draw() >>> 6)) / 2 ** 53;
}

/** Index of the largest logit, the first of equals; -1 when none is finite or one is NaN. */
export function argmax(logits: Float32Array): number {
  let best = -1;
  let value = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i] ?? NaN;
    if (Number.isNaN(x)) return -1;
    if (x > value) {
      value = x;
      best = i;
    }
  }
  return value < Infinity ? best : -1;
}

/** The tokens that may follow, by ascending id, and their probabilities. */
export interface Candidates {
  readonly ids: Int32Array;
  readonly probabilities: Float64Array;
}

/** What is left of softmax(logits / temperature) after top-k, top-p and min-p. `logits` [V] must be finite or -Infinity. */
export function candidates(logits: Float32Array, { temperature, topK, topP, minP }: Omit<ResolvedSampling, "seed" | "repetitionPenalty">): Candidates {
  let ids = Int32Array.from(logits, (_, id) => id);
  if (topK > 0 && topK < logits.length) {
    const threshold = logits.slice().sort()[logits.length - topK] ?? -Infinity;
    ids = ids.filter((id) => (logits[id] ?? NaN) >= threshold);
  }
  const best = ids.reduce((max, id) => Math.max(max, logits[id] ?? NaN), -Infinity);
  let weights = Float64Array.from(ids, (id) => Math.exp(((logits[id] ?? NaN) - best) / temperature));
  const keep = (kept: (weight: number) => boolean): void => {
    const mask = Array.from(weights, kept);
    ids = ids.filter((_, i) => mask[i]);
    weights = weights.filter((_, i) => mask[i]);
  };
  if (topP < 1) {
    const sorted = weights.slice().sort().reverse();
    const needed = topP * sorted.reduce((sum, w) => sum + w, 0);
    let [count, mass] = [0, 0];
    while (count < sorted.length && (count === 0 || mass < needed)) mass += sorted[count++] ?? NaN;
    const threshold = sorted[count - 1] ?? 0;
    let ties = count - sorted.indexOf(threshold);
    keep((weight) => weight > threshold || (weight === threshold && ties-- > 0));
  }
  // The best token weighs exactly 1, before and after the others were cut.
  if (minP > 0) keep((weight) => weight >= minP);
  const total = weights.reduce((sum, w) => sum + w, 0);
  return { ids, probabilities: weights.map((w) => w / total) };
}

/** Chooses the tokens of one sequence. */
export class Sampler {
  readonly #seen: Set<number>;
  readonly #random: () => number;

  /** @param prompt tokens the repetition penalty counts as seen from the start */
  constructor(
    private readonly options: ResolvedSampling,
    prompt: readonly number[],
  ) {
    this.#seen = new Set(prompt);
    this.#random = randomSource(options.seed);
  }

  /**
   * The token after `position` tokens of row `row` (named in errors only). `logits` [V] may be changed.
   * @throws LayerweaveError `runtime/not-finite`
   */
  next(logits: Float32Array, row: number, position: number): number {
    const { repetitionPenalty, temperature } = this.options;
    if (repetitionPenalty !== 1)
      for (const id of this.#seen) {
        const logit = logits[id] ?? NaN;
        logits[id] = logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty;
      }
    const best = argmax(logits);
    if (best < 0) fail(runtimeDiagnostics["not-finite"], { row, position });
    const token = temperature === 0 ? best : this.#draw(candidates(logits, this.options));
    this.#seen.add(token);
    return token;
  }

  #draw({ ids, probabilities }: Candidates): number {
    let left = this.#random();
    let chosen = 0;
    // Rounding may leave the probabilities short of 1; the last token that can be drawn takes the rest.
    for (let i = 0; i < ids.length; i++) {
      const p = probabilities[i] ?? 0;
      if (p > 0) chosen = i;
      left -= p;
      if (left < 0) break;
    }
    return ids[chosen] ?? 0;
  }
}
