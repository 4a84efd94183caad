import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Diagnostics, LayerweaveError } from "../../core/diagnostics.js";
import { inheritCallSite } from "../../core/origin.js";
import { checkedLayout, lower } from "../../compiler/lower.js";
import { portable } from "../../compiler/targets/portable.js";
import type { ModelSpec } from "../../dsl/index.js";
import { resolveLayout } from "../../dsl/resolve.js";
import { seed } from "./draws.js";
import { validModels } from "./layouts.js";

/** A layout as plain data that can be changed; every part still knows the call that made it. */
type Mutable = { [field: string]: unknown };

function thaw<T>(value: T): T {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(thaw) as T;
  return inheritCallSite(Object.fromEntries(Object.entries(value).map(([k, v]) => [k, thaw(v as unknown)])), value) as T;
}

/** Every object in a layout that `matches`. */
function parts(value: unknown, matches: (part: Mutable) => boolean): Mutable[] {
  if (typeof value !== "object" || value === null) return [];
  const inner = Object.values(value).flatMap((v) => parts(v, matches));
  return !Array.isArray(value) && matches(value as Mutable) ? [value as Mutable, ...inner] : inner;
}

const ofKind = (kind: string) => (part: Mutable) => part.kind === kind;
const notACount = fc.constantFrom<unknown>(0, -1, 2.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 31);
const notPositive = fc.constantFrom<unknown>(0, -1, Number.NaN, Number.POSITIVE_INFINITY);
const notANumber = fc.constantFrom<unknown>("8", null, true, [], {}, () => 8);

/** One way to spoil a valid layout: which parts it can be done to, how, and what must be said about it. */
interface Breakage {
  readonly name: string;
  readonly code: string;
  readonly applies: (part: Mutable) => boolean;
  readonly value?: fc.Arbitrary<unknown>;
  readonly spoil: (part: Mutable, value: unknown) => void;
}

const set = (field: string) => (part: Mutable, value: unknown) => {
  part[field] = value;
};
const counts = (kind: string, ...fields: readonly string[]): Breakage[] =>
  fields.map((field) => ({ name: `${kind}.${field} is no count`, code: "dsl/not-a-count", applies: ofKind(kind), value: notACount, spoil: set(field) }));
const positives = (kind: string, ...fields: readonly string[]): Breakage[] =>
  fields.map((field) => ({ name: `${kind}.${field} is not positive`, code: "dsl/not-a-positive-number", applies: ofKind(kind), value: notPositive, spoil: set(field) }));

const breakages: readonly Breakage[] = [
  ...counts("model", "vocabSize", "dModel", "contextLength"),
  ...counts("attention", "nHeads"),
  ...counts("attention", "nKvHeads", "headDim", "window"),
  ...counts("mamba", "dState", "dConv", "dtRank"),
  ...counts("mlp", "dFf"),
  ...counts("moe", "nExperts", "topK", "dFf"),
  ...counts("repeat", "times"),
  ...positives("rms-norm", "eps"),
  ...positives("rope", "theta"),
  ...positives("linear", "factor"),
  ...positives("llama3", "factor", "originalContext", "lowFreqFactor", "highFreqFactor"),
  ...positives("yarn", "factor", "originalContext", "betaFast", "betaSlow"),
  ...positives("yarn", "attentionFactor"),
  ...["vocabSize", "nHeads", "dState", "dFf", "topK", "period", "offset", "theta", "factor", "times"].map((field) => ({
    name: `${field} is no number`,
    code: "dsl/wrong-type",
    applies: (p: Mutable) => field in p,
    value: notANumber,
    spoil: set(field),
  })),
  ...["weight", "qkvBias", "outBias", "convBias", "projBias", "bias", "renormalise", "tieEmbeddings"].map((field) => ({
    name: `${field} is neither true nor false`,
    code: "dsl/wrong-type",
    applies: (p: Mutable) => field in p,
    value: fc.constantFrom<unknown>("yes", 1, null, undefined),
    spoil: set(field),
  })),
  { name: "yarn's betas in the wrong order", code: "dsl/yarn-range", applies: (p) => p.kind === "yarn", spoil: (p) => void (p.betaSlow = p.betaFast) },
  { name: "a field that nothing reads", code: "dsl/unknown-field", applies: (p) => "kind" in p, spoil: (p) => void (p.d_model = 64) },
  { name: "blocks is no count", code: "dsl/not-a-count", applies: (p) => "blocks" in p, value: notACount, spoil: set("blocks") },
  { name: "a planned block's layers is no count", code: "dsl/not-a-count", applies: (p) => p.kind === "block" && "mixer" in p, value: notACount, spoil: set("layers") },
  { name: "more layers than anyone means", code: "dsl/too-many-layers", applies: (p) => "blocks" in p, spoil: (p) => void (p.blocks = 1_000_000) },
  { name: "more layers in a block than anyone means", code: "dsl/too-many-layers", applies: (p) => p.kind === "block" && "mixer" in p, spoil: (p) => void (p.layers = 1_000_000) },
  { name: "no layers", code: "dsl/no-layers", applies: (p) => p.kind === "model" && Array.isArray(p.layers), spoil: (p) => void Object.assign(p, { layers: [], overrides: {} }) },
  { name: "an empty layer", code: "dsl/empty-layer", applies: ofKind("layer"), spoil: (p) => void (delete p.mixer, delete p.channelMixer) },
  {
    name: "offset beyond the period",
    code: "dsl/offset-beyond-period",
    applies: ofKind("every"),
    value: fc.constantFrom<unknown>(0, 3, -1.5, Number.NaN),
    spoil: (p, v) => void (p.offset = typeof v === "number" && v >= 0 ? (p.period as number) + v : v),
  },
  { name: "a ratio's place taken twice", code: "dsl/ratio-at", applies: ofKind("ratio"), spoil: (p) => void (p.at = [...(p.at as number[]), (p.at as number[])[0]]) },
  { name: "a ratio's place outside the period", code: "dsl/ratio-at", applies: ofKind("ratio"), value: fc.constantFrom<unknown>(-1, 4, 0.5), spoil: (p, v) => void (p.at = [v, ...(p.at as number[]).slice(1)]) },
  { name: "a ratio's count is none", code: "dsl/not-a-count", applies: ofKind("ratio"), value: notACount, spoil: (p, v) => void ((p.counts as Mutable).mamba = v) },
  {
    name: "a ratio that does not divide the block",
    code: "dsl/ratio-does-not-divide",
    applies: (p) => p.kind === "block" && (p.mixer as Mutable | undefined)?.kind === "ratio",
    spoil: (p) => void (p.layers = (p.layers as number) + 1),
  },
  { name: "a ratio without one of its mixers", code: "dsl/not-a-spec", applies: ofKind("ratio"), spoil: (p) => void delete (p.mixers as Mutable).mamba },
  { name: "an unknown letter", code: "dsl/unknown-letter", applies: ofKind("pattern"), value: fc.constantFrom("m", "?", "é", "𝕄", " "), spoil: (p, v) => void (p.letters = `${String(p.letters)}${String(v)}`) },
  { name: "an override of a layer that is not there", code: "dsl/override-out-of-range", applies: ofKind("model"), value: fc.constantFrom("99", "-1", "0.5", "last"), spoil: (p, v) => void (p.overrides = { [String(v)]: {} }) },
  { name: "heads that do not divide dModel", code: "dsl/heads-do-not-divide", applies: ofKind("attention"), spoil: (p) => void (delete p.headDim, (p.nHeads = 7), (p.nKvHeads = 7)) },
  { name: "key/value heads that do not divide the heads", code: "dsl/kv-heads-do-not-divide", applies: ofKind("attention"), spoil: (p) => void (p.nKvHeads = (p.nHeads as number) + 1) },
  { name: "an odd head under rotary embedding", code: "dsl/rope-odd-head", applies: (p) => p.kind === "attention" && (p.position as Mutable).kind === "rope", spoil: (p) => void (p.headDim = 5) },
  { name: "llama3 factors in the wrong order", code: "dsl/llama3-frequencies", applies: ofKind("llama3"), spoil: (p) => void Object.assign(p, { lowFreqFactor: 4, highFreqFactor: 4 }) },
  { name: "a rank beyond dInner", code: "dsl/dt-rank-too-large", applies: ofKind("mamba"), spoil: (p) => void (p.dtRank = 1000) },
  { name: "an expansion to no whole width", code: "dsl/expand-not-whole", applies: ofKind("mamba"), spoil: (p) => void (p.expand = 1.01) },
  { name: "a convolution of one token", code: "dsl/conv-too-short", applies: ofKind("mamba"), spoil: (p) => void (p.dConv = 1) },
  { name: "more experts wanted than there are", code: "dsl/top-k-above-experts", applies: ofKind("moe"), spoil: (p) => void (p.topK = (p.nExperts as number) + 1) },
  { name: "shared experts", code: "dsl/shared-experts", applies: ofKind("moe"), spoil: (p) => void (p.nSharedExperts = 1) },
  { name: "a norm that is only a number", code: "dsl/not-a-spec", applies: (p) => "norm" in p, spoil: (p) => void (p.norm = 1e-6) },
  { name: "a router by name", code: "dsl/not-a-spec", applies: (p) => "router" in p, spoil: (p) => void (p.router = "softmax") },
  { name: "a scaling of no known kind", code: "dsl/not-a-spec", applies: (p) => "scaling" in p, spoil: (p) => void ((p.scaling as Mutable).kind = "ntk") },
  { name: "a mixer of no known kind", code: "dsl/not-a-spec", applies: (p) => p.kind === "mamba" || p.kind === "attention", spoil: (p) => void (p.kind = "rwkv") },
  { name: "a channel mixer of no known kind", code: "dsl/not-a-spec", applies: (p) => p.kind === "mlp" || p.kind === "moe", spoil: (p) => void (p.kind = "hyena") },
];

function expectUsable(error: unknown): asserts error is LayerweaveError {
  if (!(error instanceof LayerweaveError)) throw error;
  expect(error.exitCode).toBe(3);
  for (const { code, help, message, path } of error.diagnostics) {
    expect(code).toMatch(/^dsl\/[a-z0-9-]+$/);
    expect(message).not.toMatch(/\[object/);
    expect(help).not.toMatch(/undefined|NaN|\[object/);
    expect(help.length).toBeGreaterThan(10);
    expect(path, code).toMatch(/^[a-zA-Z]/);
  }
}

/** The error that a layout is refused with; undefined when it is accepted. */
function refusal(model: ModelSpec): unknown {
  try {
    checkedLayout(model);
    return undefined;
  } catch (error) {
    return error;
  }
}

describe("a valid layout in which one thing is broken", () => {
  it.each(breakages)("$name → $code", ({ code, applies, value, spoil }) => {
    fc.assert(
      fc.property(validModels, fc.nat(), value ?? fc.constant(undefined), (model, at, drawn) => {
        const broken = thaw(model);
        const candidates = parts(broken, applies);
        fc.pre(candidates.length > 0);
        const part = candidates[at % candidates.length]!;
        spoil(part, drawn);
        const error = refusal(broken);
        // A part that no layer uses (an unused letter of a legend, a half that is overridden) is not looked at.
        if (error === undefined) fc.pre(JSON.stringify(checkedLayout(broken)) !== JSON.stringify(checkedLayout(model)));
        expectUsable(error);
        const found = error.diagnostics.find((d) => d.code === code);
        expect(found, `${code} among ${error.diagnostics.map((d) => d.code).join(", ")}`).toBeDefined();
        expect(found?.at?.file).toMatch(/layouts\.ts$/);
      }),
      { seed, numRuns: 10, maxSkipsPerRun: 1000 },
    );
  });

  it("never ends in an internal error, whatever stands where", () => {
    const junk = fc.constantFrom<unknown>(undefined, null, Number.NaN, -1, 0, 1.5, 3, "x", "", true, [], [1], {}, { kind: "nope" }, () => 1);
    fc.assert(
      fc.property(validModels, fc.nat(), fc.nat(), junk, (model, at, field, value) => {
        const broken = thaw(model);
        const objects = parts(broken, () => true);
        const part = objects[at % objects.length]!;
        const fields = Object.keys(part).filter((name) => !(part.kind === "model" && name === "kind"));
        fc.pre(fields.length > 0);
        part[fields[field % fields.length]!] = value;
        let layout: ReturnType<typeof checkedLayout>;
        try {
          layout = checkedLayout(broken as ModelSpec);
        } catch (error) {
          expectUsable(error);
          return;
        }
        lower(layout, portable, () => "float32");
      }),
      { seed, numRuns: 1000, maxSkipsPerRun: 1000 },
    );
  });
});

it("every drawn layout is valid, and its layers have the path and place of their calls", () => {
  fc.assert(
    fc.property(validModels, (model) => {
      const found = new Diagnostics();
      resolveLayout(model, found);
      expect(found.all).toEqual([]);
      expect(refusal(model)).toBeUndefined();
    }),
    { seed, numRuns: 200 },
  );
});
