import { fail } from "../../core/diagnostics.js";
import { runtimeDiagnostics } from "../diagnostics.js";
import type { Backend, BackendChoice } from "./backend.js";
import { chooseCuda } from "./cuda.js";
import { loadNativeRuntime } from "./native-addon.js";
import { nativeBackend } from "./native.js";
import { portable } from "./portable.js";

/** `auto`: native where it can be used on this machine, else portable. */
export const backendNames = ["auto", "native", "portable"] as const;
export type BackendName = (typeof backendNames)[number];

interface Chosen {
  readonly backend: Backend;
  readonly choice: BackendChoice;
}

/**
 * What runs a folder compiled for `target`: a card runs those compiled for CUDA and only those.
 * @throws LayerweaveError `runtime/wrong-target`, `runtime/bad-option`, and as `chooseBackend` and `chooseCuda`
 */
export async function backendFor(target: string, folder: string, wanted: BackendName, device: string | undefined): Promise<Chosen> {
  const ordinal = device === undefined || device === "cpu" ? undefined : Number(/^cuda:(\d{1,3})$/.exec(device)?.[1] ?? fail(runtimeDiagnostics["bad-option"], { option: "device", expected: "cpu, or cuda:0 and so on", found: device }));
  const forCard = target === "cuda";
  if (wanted !== "auto" && (forCard || ordinal !== undefined)) fail(runtimeDiagnostics["wrong-target"], { folder, target, asked: `the ${wanted} backend${ordinal === undefined ? "" : ` on ${device}`}` });
  if (device !== undefined && forCard !== (ordinal !== undefined)) fail(runtimeDiagnostics["wrong-target"], { folder, target, asked: device });
  if (!forCard) return chooseBackend(wanted);
  return chooseCuda(ordinal ?? 0, device === undefined ? "the folder was compiled for CUDA" : "it was asked for");
}

/** @throws LayerweaveError `runtime/native-unavailable` when native was asked for by name */
export function chooseBackend(wanted: BackendName): Chosen {
  // ONNX Runtime reports to its maker, and writes an id and a database for it, unless this is set before it is loaded.
  process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
  if (wanted === "portable") return { backend: portable, choice: { name: "portable", ops: "function-bodies", why: "it was asked for" } };
  const native = loadNativeRuntime();
  if ("reason" in native) {
    if (wanted === "native") fail(runtimeDiagnostics["native-unavailable"], { reason: native.reason });
    return { backend: portable, choice: { name: "portable", ops: "function-bodies", why: `the native runtime can't be used: ${native.reason}` } };
  }
  const { version, kernels } = native;
  const asked = wanted === "native" ? "it was asked for" : "it can be used here";
  return {
    backend: nativeBackend(native),
    choice: {
      name: "native",
      ops: "path" in kernels ? "kernels" : "function-bodies",
      why: `${asked}, with ONNX Runtime ${version}${"path" in kernels ? "" : `; no kernels: ${kernels.reason}`}`,
    },
  };
}
