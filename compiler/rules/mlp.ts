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
    if (target.fusedMixers && !spec.bias) {
      const weights = ["gate_proj", "up_proj", "down_proj"].map((name) => parameter(`${name}.weight`));
      return { y: b.op("ai.layerweave::GatedMlp", "mlp", [x, ...weights, ...weights.flatMap((w) => w.scale ?? [])]), present: {} }; // [M, D]
    }
    const project = (name: string, input: typeof x) => b.linear(name, input, parameter(`${name}.weight`), optionalParameter(`${name}.bias`));
    const hidden = b.op("Mul", "hidden", [b.silu("gate", project("gate_proj", x)), project("up_proj", x)]); // [M, F]
    return { y: project("down_proj", hidden), present: {} }; // [M, D]
  },
};
