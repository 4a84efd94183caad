import { originOf } from "../../core/origin.js";
import type { Mlp } from "../../dsl/channel-mixers/mlp.js";
import { matrix, vector } from "../ir/parameter.js";
import { targetDiagnostics } from "../targets/diagnostics.js";
import { checkCounts, checkWidths, type Rules } from "./definition.js";

export const mlpRules: Rules<Mlp> = {
  parameters: ({ dFf, bias }, { dModel, nLayers }) => [
    matrix("gate_proj.weight", dFf, dModel, "mlp"),
    matrix("up_proj.weight", dFf, dModel, "mlp"),
    matrix("down_proj.weight", dModel, dFf, "mlp", 1 / Math.sqrt(2 * nLayers)),
    ...(bias ? [vector("gate_proj.bias", [dFf], "mlp", 0), vector("up_proj.bias", [dFf], "mlp", 0), vector("down_proj.bias", [dModel], "mlp", 0)] : []),
  ],

  state: () => [],

  check: (spec, path, _model, found) => {
    checkCounts(spec, ["dFf"], path, found);
  },

  checkLimits: (spec, path, limits, found) => {
    checkWidths(spec, ["dFf"], path, limits, found);
    if (spec.bias) found.report(targetDiagnostics["mlp-bias"], {}, originOf(spec, `${path}.bias`));
  },

  lower: (spec, x, { b, parameter, optionalParameter, target }) => {
    const gate = parameter("gate_proj.weight");
    // Quantising takes all matrices of an MLP or none.
    if (!spec.bias && (target.fusedMixers || (target.fusedInt8 && gate.scale))) {
      const weights = [gate, parameter("up_proj.weight"), parameter("down_proj.weight")];
      return { y: b.op("ai.layerweave::GatedMlp", "mlp", [x, ...weights, ...weights.map(({ scale }) => scale ?? null)]), present: {} }; // [M, D]
    }
    const project = (name: string, weight: typeof x, input: typeof x) => b.linear(name, input, weight, optionalParameter(`${name}.bias`));
    const hidden = b.op("Mul", "hidden", [b.silu("gate", project("gate_proj", gate, x)), project("up_proj", parameter("up_proj.weight"), x)]); // [M, F]
    return { y: project("down_proj", parameter("down_proj.weight"), hidden), present: {} }; // [M, D]
  },
};
