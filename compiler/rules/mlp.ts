import type { Mlp } from "../../dsl/channel-mixers/mlp.js";
import { matrix, vector } from "../ir/parameter.js";
import { checkCounts, type Rules } from "./definition.js";

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

  lower: (_spec, x, { b, parameter, optionalParameter }) => {
    const project = (name: string, input: typeof x) => b.linear(name, input, parameter(`${name}.weight`), optionalParameter(`${name}.bias`));
    const hidden = b.op("Mul", "hidden", [b.silu("gate", project("gate_proj", x)), project("up_proj", x)]); // [M, F]
    return { y: project("down_proj", hidden), present: {} }; // [M, D]
  },
};
