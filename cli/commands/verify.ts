import { type BackendName, load, verify, type Verification, type WeightPlace } from "../../runtime/index.js";
import { formatTable } from "../format.js";
import { untilInterrupted } from "../interrupt.js";
import { loadingStatus } from "../loading.js";
import type { Terminal } from "../terminal.js";

export interface VerifyOptions {
  /** safetensors file with `input_ids`, `logits` and optionally `generated_ids`, `step_logits`. */
  readonly reference: string;
  /** Largest relative error that passes. */
  readonly tolerance: number;
  readonly backend: BackendName;
  readonly device?: string;
  readonly cudaGraphs: boolean;
  readonly weights: WeightPlace;
}

/** Compares a compiled model with a reference. @returns whether every error is within the tolerance. */
export async function verifyFolder(terminal: Terminal, folder: string, { reference, tolerance, ...where }: VerifyOptions): Promise<boolean> {
  await using model = await load(folder, { ...where, onProgress: loadingStatus(terminal, folder) });
  terminal.status(`comparing with ${reference}`);
  const verification = await untilInterrupted(async (signal) => {
    const interrupted = new Promise<never>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
    return Promise.race([verify(model, reference), interrupted]);
  });
  const checks = checksOf(verification, tolerance);
  const { maxAbsError, stepRelativeError } = verification;
  const passed = checks.every((check) => check.passed);
  terminal.write(formatTable(checks.map(({ name, value, passed }) => [name, value, passed ? "ok" : "FAILED"]), { right: [1] }));
  terminal.write(`largest difference of one logit: ${maxAbsError.toExponential(2)}\n`);
  if (stepRelativeError !== null) terminal.write(`relative error of the logits while decoding: ${stepRelativeError.toExponential(2)}\n`);
  terminal.write(`${folder} ${passed ? "agrees" : "does NOT agree"} with the reference within ${tolerance.toExponential()}\n`);
  terminal.result({ passed, tolerance, backend: model.backend, ...verification });
  return passed;
}

interface Check {
  readonly name: string;
  readonly value: string;
  readonly passed: boolean;
}

function checksOf({ relativeError, splits, generatedIdsMatch }: Verification, tolerance: number): readonly Check[] {
  // NaN fails: no comparison with it holds.
  const within = (name: string, error: number): Check => ({ name, value: error.toExponential(2), passed: error <= tolerance });
  return [
    within("relative error, prompt whole", relativeError),
    ...Object.entries(splits).map(([piece, error]) => within(`relative error, in pieces of ${piece}`, error)),
    ...(generatedIdsMatch === null ? [] : [{ name: "greedy tokens", value: generatedIdsMatch ? "equal" : "different", passed: generatedIdsMatch }]),
  ];
}
