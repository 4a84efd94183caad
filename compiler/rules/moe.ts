import { originOf } from "../../core/origin.js";
import type { Moe } from "../../dsl/channel-mixers/moe.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import { matrix, type ParameterSpec } from "../ir/parameter.js";
import { checkCounts, checkMost, checkWidths, type Rules } from "./definition.js";

const expertIndices = ({ nExperts }: Moe) => Array.from({ length: nExperts }, (_, e) => e);

export const moeRules: Rules<Moe> = {
  parameters: (spec, { dModel, nLayers }): readonly ParameterSpec[] => {
    const active = spec.topK / spec.nExperts;
    return [
      { ...matrix("router.weight", spec.nExperts, dModel, "router"), matrix: false, wide: true },
      ...expertIndices(spec).flatMap((e) => [
        { ...matrix(`experts.${e}.gate_proj.weight`, spec.dFf, dModel, "experts"), active },
        { ...matrix(`experts.${e}.up_proj.weight`, spec.dFf, dModel, "experts"), active },
        { ...matrix(`experts.${e}.down_proj.weight`, dModel, spec.dFf, "experts", 1 / Math.sqrt(2 * nLayers)), active },
      ]),
    ];
  },

  state: () => [],

  check: (spec, path, _model, found) => {
    if (checkCounts(spec, ["nExperts", "topK", "dFf"], path, found) && spec.topK > spec.nExperts)
      found.report(dslDiagnostics["top-k-above-experts"], { topK: spec.topK, nExperts: spec.nExperts }, originOf(spec, `${path}.topK`));
  },

  checkLimits: (spec, path, limits, found) => {
    checkWidths(spec, ["dFf"], path, limits, found);
    checkMost(spec, ["nExperts", "topK"], path, limits, found);
  },

  lower: (spec, x, { b, parameter, unwidened }) => {
    const weights = unwidened(expertIndices(spec).flatMap((e) => ["gate_proj", "up_proj", "down_proj"].map((name) => `experts.${e}.${name}.weight`)));
    const y = b.op("ai.layerweave::MoE", "experts", [x, parameter("router.weight"), ...weights, ...weights.flatMap((w) => w.scale ?? [])], {
      n_experts: spec.nExperts,
      top_k: spec.topK,
      router: spec.router.kind,
      renormalise: spec.router.kind === "softmax-then-top-k" && spec.router.renormalise ? 1 : 0,
    }); // [M, D]
    return { y, present: {} };
  },
};
