import { invariant } from "../../core/diagnostics.js";
import { originOf } from "../../core/origin.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import type { Attention } from "../../dsl/mixers/attention.js";
import type { Value } from "../ir/graph.js";
import { matrix, vector } from "../ir/parameter.js";
import { checkCounts, checkMost, checkWidths, flat, perToken, type LowerContext, type Rules } from "./definition.js";
import { checkRope, ropeFrequencies } from "./rope.js";

export const attentionRules: Rules<Attention> = {
  parameters: ({ nHeads, nKvHeads, headDim, qkvBias, outBias }, { dModel, nLayers }) => [
    matrix("q_proj.weight", nHeads * headDim, dModel, "attention"),
    matrix("k_proj.weight", nKvHeads * headDim, dModel, "attention"),
    matrix("v_proj.weight", nKvHeads * headDim, dModel, "attention"),
    matrix("o_proj.weight", dModel, nHeads * headDim, "attention", 1 / Math.sqrt(2 * nLayers)),
    ...(qkvBias
      ? [vector("q_proj.bias", [nHeads * headDim], "attention", 0), vector("k_proj.bias", [nKvHeads * headDim], "attention", 0), vector("v_proj.bias", [nKvHeads * headDim], "attention", 0)]
      : []),
    ...(outBias ? [vector("o_proj.bias", [dModel], "attention", 0)] : []),
  ],

  state: ({ nKvHeads, headDim, window }) =>
    (["key", "value"] as const).map((role) => ({
      role,
      shape: ["B", nKvHeads, "S", headDim],
      growth: "per-token",
      rewind: "trim",
      ...(window === null ? {} : { window }),
    })),

  check: (spec, path, { dModel }, found) => {
    if (spec.window !== null) checkCounts(spec as Attention & { readonly window: number }, ["window"], path, found);
    if (!checkCounts(spec, ["nHeads", "nKvHeads"], path, found)) return;
    // Both are what resolving computes when headDim was left out.
    if (!Number.isInteger(spec.headDim) && spec.headDim === dModel / spec.nHeads) found.report(dslDiagnostics["heads-do-not-divide"], { dModel, nHeads: spec.nHeads }, originOf(spec, `${path}.nHeads`));
    else if (checkCounts(spec, ["headDim"], path, found)) checkRope(spec, path, found);
    if (spec.nHeads % spec.nKvHeads !== 0)
      found.report(dslDiagnostics["kv-heads-do-not-divide"], { nHeads: spec.nHeads, nKvHeads: spec.nKvHeads }, originOf(spec, `${path}.nKvHeads`));
  },

  checkLimits: (spec, path, limits, found) => {
    checkWidths(spec, ["headDim"], path, limits, found);
    checkMost(spec, ["headDim"], path, limits, found);
  },

  lower: (spec, x, context) => {
    const { b, parameter, optionalParameter, target } = context;
    const [attended, key, value] = target.fusedMixers ? fused(spec, x, context) : separate(spec, x, context); // [M, H·P], [B, G, S, P], [B, G, S, P]
    const y = b.linear("o_proj", attended, parameter("o_proj.weight"), optionalParameter("o_proj.bias")); // [M, D]
    return { y, present: { key, value } };
  },
};

type Attended = readonly [y: Value, presentKey: Value, presentValue: Value];

const projections = ["q_proj", "k_proj", "v_proj"] as const;

/** One projection, and all that follows it as one op. */
function fused(spec: Attention, x: Value, { b, merged, past, pastLengths }: LowerContext): Attended {
  const rows = (part: "weight" | "bias") => merged(`qkv_proj.${part}`, projections.map((name) => `${name}.${part}`));
  const weight = rows("weight"); // [(H + 2G)·P, D]
  invariant(weight, "an attention without projections");
  const qkv = b.linear("qkv_proj", x, weight, rows("bias")); // [M, (H + 2G)·P]
  const rope = spec.position.kind === "none" ? undefined : ropeFrequencies(spec.position, spec.headDim);
  const frequencies = rope ? b.floats([rope.inverse.length], rope.inverse) : null; // [P / 2]
  return b.ops("ai.layerweave::AttentionInner", "inner", [qkv, past("key"), past("value"), pastLengths, frequencies], {
    n_heads: spec.nHeads,
    n_kv_heads: spec.nKvHeads,
    window: spec.window ?? 0,
    rope_scale: rope?.scale ?? 1,
  }) as unknown as Attended; // [M, H·P], [B, G, S, P], [B, G, S, P]
}

/** A projection each, rotations, and attention over the cache. */
function separate(spec: Attention, x: Value, context: LowerContext): Attended {
  const { b, parameter, optionalParameter, past, pastLengths } = context;
  const project = (name: (typeof projections)[number]) => perToken(context, `${name}_tokens`, b.linear(name, x, parameter(`${name}.weight`), optionalParameter(`${name}.bias`)));
  const query = rotated(spec, context, "q_rotated", project("q_proj"), spec.nHeads); // [B, T, H·P]
  const key = rotated(spec, context, "k_rotated", project("k_proj"), spec.nKvHeads); // [B, T, G·P]
  const value = project("v_proj"); // [B, T, G·P]
  const [attended, presentKey, presentValue] = b.ops("ai.layerweave::CachedAttention", "attention", [query, key, value, past("key"), past("value"), pastLengths], {
    n_heads: spec.nHeads,
    n_kv_heads: spec.nKvHeads,
    window: spec.window ?? 0,
  }) as [Value, Value, Value]; // [B, T, H·P], [B, G, S, P], [B, G, S, P]
  return [flat(context, "attended", attended), presentKey, presentValue]; // [M, H·P]
}

/** x [B, T, n·P] with its heads turned by their position; unchanged without positional encoding. */
function rotated(spec: Attention, { b, inputIds, pastLengths, target: { computeDtype } }: LowerContext, label: string, x: Value, heads: number): Value {
  if (spec.position.kind === "none") return x;
  const { inverse, scale } = ropeFrequencies(spec.position, spec.headDim);
  const angles = uniqueLabel(b, "rope_angles", inverse);
  // By what they hold and not by the position's spec: different specs may have equal frequencies.
  const table = (kind: "Cos" | "Sin") => {
    const label = uniqueLabel(b, `rope_${kind.toLowerCase()}`, [...inverse, scale]);
    return b.shared(label, () => {
      const turned = b.shared(angles, () => {
        const tokens = b.shared("token_index", () => {
          const shape = b.shared("ids_shape", () => b.op("Shape", "ids_shape", [inputIds])); // [2]
          const count = b.op("Gather", "token_count", [shape, b.scalar("int64", 1)], { axis: 0 }); // []
          return b.op("Range", "token_index", [b.scalar("int64", 0), count, b.scalar("int64", 1)]); // [T]
        });
        const positions = b.shared("positions", () =>
          b.op("Unsqueeze", "positions", [
            b.op("Cast", "position_numbers", [b.op("Add", "position_ids", [b.op("Unsqueeze", "past_lengths_column", [pastLengths, b.ints(1)]), tokens])], { to: computeDtype }),
            b.ints(2),
          ]),
        ); // [B, T, 1]
        return b.op("Mul", angles, [positions, b.floats([inverse.length], inverse)]); // [B, T, P / 2]
      });
      const wave = b.op(kind, label, [turned]); // [B, T, P / 2]
      return scale === 1 ? wave : b.op("Mul", `${label}_scaled`, [wave, b.scalar("float32", scale)]);
    });
  };
  return b.op("RotaryEmbedding", label, [x, table("Cos"), table("Sin")], { num_heads: heads }); // [B, T, n·P]
}

/** A label that tells apart the tables of layers whose frequencies differ. */
function uniqueLabel({ floats }: LowerContext["b"], label: string, values: readonly number[]): string {
  return `${label}_${floats([values.length], values).name.slice("const_float32_".length)}`;
}
