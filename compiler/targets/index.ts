import { fail } from "../../core/diagnostics.js";
import type { StorageDtype } from "../../core/dtype.js";
import { cuda } from "./cuda.js";
import { targetDiagnostics } from "./diagnostics.js";
import { portable } from "./portable.js";
import type { Target } from "./target.js";

export const targetNames = ["portable", "cuda"] as const;
export type TargetName = (typeof targetNames)[number];

/**
 * The target of this name; `dtype` is what matrices are stored in, if the user says so.
 * @throws LayerweaveError `target/dtype`
 */
export function targetNamed(name: TargetName, dtype?: StorageDtype): Target {
  switch (name) {
    case "portable":
      return portable;
    case "cuda":
      if (dtype === "float32") fail(targetDiagnostics.dtype, { target: name, dtype, known: ["bfloat16", "float16"] });
      return cuda(dtype ?? "bfloat16");
  }
}
