import { originOf } from "../../core/origin.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import type { Mamba } from "../../dsl/mixers/mamba.js";
import type { Value } from "../ir/graph.js";
import { matrix, type ParameterSpec, vector } from "../ir/parameter.js";
import { checkCounts, checkMost, checkPositive, checkWidths, flat, type LowerContext, normalise, ones, perToken, type Rules } from "./definition.js";

/** Range of the time steps a fresh Mamba starts from (Gu & Dao 2023, appendix; mamba_simple.py). */
const freshDt = { min: 0.001, max: 0.1 };

export const mambaRules: Rules<Mamba> = {
  parameters: ({ dInner, dState, dConv, dtRank, innerNorm, convBias, projBias }, { dModel, nLayers }): readonly ParameterSpec[] => [
    matrix("in_proj.weight", 2 * dInner, dModel, "mamba"),
    { name: "conv1d.weight", shape: [dInner, 1, dConv], kind: "mamba", matrix: true, init: { kind: "uniform", std: 1 / Math.sqrt(dConv) } },
    ...(convBias ? [vector("conv1d.bias", [dInner], "mamba", 0)] : []),
    matrix("x_proj.weight", dtRank + 2 * dState, dInner, "mamba"),
    ...(innerNorm?.dt.weight ? [vector("dt_norm.weight", [dtRank], "mamba", 1)] : []),
    ...(innerNorm?.b.weight ? [vector("b_norm.weight", [dState], "mamba", 1)] : []),
    ...(innerNorm?.c.weight ? [vector("c_norm.weight", [dState], "mamba", 1)] : []),
    matrix("dt_proj.weight", dInner, dtRank, "mamba"),
    { name: "dt_proj.bias", shape: [dInner], kind: "mamba", matrix: false, wide: true, init: { kind: "dt-bias", ...freshDt } },
    { name: "A_log", shape: [dInner, dState], kind: "mamba", matrix: false, wide: true, init: { kind: "s4d" } },
    { ...vector("D", [dInner], "mamba", 1), wide: true },
    matrix("out_proj.weight", dModel, dInner, "mamba", 1 / Math.sqrt(2 * nLayers)),
    ...(projBias ? [vector("in_proj.bias", [2 * dInner], "mamba", 0), vector("out_proj.bias", [dModel], "mamba", 0)] : []),
  ],

  state: ({ dInner, dState, dConv }) => [
    { role: "conv_state", shape: ["B", dInner, dConv - 1], growth: "constant", rewind: "snapshot" },
    { role: "ssm_state", shape: ["B", dInner, dState], growth: "constant", rewind: "snapshot" },
  ],

  check: (spec, path, { dModel }, found) => {
    checkCounts(spec, ["dState", "dConv"], path, found);
    if (spec.dConv === 1) found.report(dslDiagnostics["conv-too-short"], { dConv: spec.dConv }, originOf(spec, `${path}.dConv`));
    if (Number.isFinite(spec.dInner) && spec.dInner > 0 && !Number.isInteger(spec.dInner))
      found.report(dslDiagnostics["expand-not-whole"], { expand: spec.dInner / dModel, dModel, dInner: spec.dInner }, originOf(spec, `${path}.expand`));
    else if (checkCounts(spec, ["dInner", "dtRank"], path, found) && spec.dtRank > spec.dInner)
      found.report(dslDiagnostics["dt-rank-too-large"], { dtRank: spec.dtRank, dInner: spec.dInner, usual: Math.ceil(dModel / 16) }, originOf(spec, `${path}.dtRank`));
    for (const [name, norm] of Object.entries(spec.innerNorm ?? {})) checkPositive(norm, ["eps"], `${path}.innerNorm.${name}`, found);
  },

  checkLimits: (spec, path, limits, found) => {
    checkWidths(spec, ["dInner"], path, limits, found);
    checkMost(spec, ["dConv", "dState"], path, limits, found);
  },

  lower: (spec, x, context) => {
    const { b, parameter, optionalParameter, target } = context;
    const inProj = parameter("in_proj.weight");
    const projected = b.linear("in_proj", x, inProj, optionalParameter("in_proj.bias")); // [M, 2I]
    // Quantising takes all linear layers of a mixer or none.
    const oneOp = target.fusedMixers || (target.fusedInt8 && inProj.scale);
    const [inner, presentConv, presentSsm] = oneOp ? fused(spec, projected, context) : separate(spec, projected, context); // [M, I], [B, I, K - 1], [B, I, N]
    const out = b.linear("out_proj", inner, parameter("out_proj.weight"), optionalParameter("out_proj.bias")); // [M, D]
    return { y: out, present: { conv_state: presentConv, ssm_state: presentSsm } };
  },
};

type Inner = readonly [y: Value, presentConv: Value, presentSsm: Value];

const norms = ["dt", "b", "c"] as const;

/** xz [M, 2I] → y [M, I] and the new states, as one op. */
function fused({ dState, dtRank, innerNorm }: Mamba, xz: Value, { b, parameter, optionalParameter, past, lengths }: LowerContext): Inner {
  const [xProj, dtProj] = [parameter("x_proj.weight"), parameter("dt_proj.weight")];
  const width = { dt: dtRank, b: dState, c: dState };
  const scales = norms.map((part) => innerNorm && (optionalParameter(`${part}_norm.weight`) ?? ones(b, width[part], xz.dtype))); // [R], [N], [N]
  const inputs = [
    xz,
    parameter("conv1d.weight"),
    optionalParameter("conv1d.bias") ?? null,
    xProj,
    xProj.scale ?? null,
    ...scales,
    dtProj,
    dtProj.scale ?? null,
    parameter("dt_proj.bias"),
    parameter("A_log"),
    parameter("D"),
    past("conv_state"),
    past("ssm_state"),
    lengths,
  ];
  const eps = Object.fromEntries(norms.map((part) => [`${part}_eps`, innerNorm?.[part].eps ?? 1]));
  return b.ops("ai.layerweave::MambaInner", "inner", inputs, { dt_rank: dtRank, d_state: dState, ...eps }) as unknown as Inner; // [M, I], [B, I, K - 1], [B, I, N]
}

/** The same as a convolution, two projections with norms between, and a scan. */
function separate({ dInner, dState, dtRank, innerNorm }: Mamba, xz: Value, context: LowerContext): Inner {
  const { b, parameter, optionalParameter, past, lengths } = context;
  const both = perToken(context, "in_proj_tokens", xz); // [B, T, 2I]
  const [inner, gate] = b.ops("Split", "x_and_gate", [both, b.ints(dInner, dInner)], { axis: 2 }) as [Value, Value]; // [B, T, I] twice
  const [u, presentConv] = b.ops("ai.layerweave::CausalConv", "conv1d", [inner, parameter("conv1d.weight"), optionalParameter("conv1d.bias") ?? null, past("conv_state"), lengths], {
    activation: "silu",
  }) as [Value, Value]; // [B, T, I], [B, I, K - 1]

  const projected = b.linear("x_proj", flat(context, "conv_flat", u), parameter("x_proj.weight")); // [M, R + 2N]
  const [dtLow, inB, outC] = b.ops("Split", "dt_B_C", [projected, b.ints(dtRank, dState, dState)], { axis: 1 }) as [Value, Value, Value]; // [M, R], [M, N], [M, N]
  const normed = (part: (typeof norms)[number], value: Value) =>
    innerNorm ? normalise(b, `${part}_norm`, value, innerNorm[part], optionalParameter(`${part}_norm.weight`)) : value;
  const delta = b.linear("dt_proj", normed("dt", dtLow), parameter("dt_proj.weight")); // [M, I]
  const [y, presentSsm] = b.ops("ai.layerweave::SelectiveScan", "selective_scan", [
    u,
    perToken(context, "delta", delta),
    parameter("A_log"),
    perToken(context, "B", normed("b", inB)),
    perToken(context, "C", normed("c", outC)),
    parameter("D"),
    parameter("dt_proj.bias"),
    gate,
    past("ssm_state"),
    lengths,
  ]) as [Value, Value]; // [B, T, I], [B, I, N]
  return [flat(context, "scan_flat", y), presentConv, presentSsm]; // [M, I]
}
