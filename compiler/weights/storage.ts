import type { StorageDtype } from "../../core/dtype.js";
import { isQuantized, type Quantization } from "../../core/plan/weights.js";
import type { Parameter, WeightDtype } from "../ir/parameter.js";
import type { Target } from "../targets/target.js";

/** How each parameter is stored for a target; `given` is the type that the user or the checkpoint says. */
export function storageFor({ weightStorage, computeDtype }: Target, quantize: Quantization, given: (parameter: Parameter) => StorageDtype): (parameter: Parameter) => WeightDtype {
  return (parameter) => {
    if (isQuantized(parameter, quantize)) return "int8";
    if (weightStorage === "as-given") return given(parameter);
    return parameter.wide ? "float32" : computeDtype;
  };
}
