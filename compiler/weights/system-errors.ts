import { type Diagnostic, diagnostic, LayerweaveError } from "../../core/diagnostics.js";
import { weightsDiagnostics } from "./diagnostics.js";

/** Whether the operating system raised it; anything else is a bug of ours. */
export const isSystemError = (error: unknown): error is NodeJS.ErrnoException => error instanceof Error && "syscall" in error;

export const isMissing = (error: unknown): boolean => isSystemError(error) && (error.code === "ENOENT" || error.code === "ENOTDIR");

/** What the user is told of an error while reading `path`. Rethrows errors that are not the system's. */
export function readFailure(path: string, error: unknown): Diagnostic {
  if (!isSystemError(error)) throw error;
  return isMissing(error) ? diagnostic(weightsDiagnostics["not-found"], { path }) : diagnostic(weightsDiagnostics.unreadable, { path, problem: error.message });
}

/** Waits for a read of `path`; a system error becomes its diagnostic. */
export async function reading<T>(path: string, operation: Promise<T>): Promise<T> {
  try {
    return await operation;
  } catch (error) {
    throw new LayerweaveError([readFailure(path, error)]);
  }
}

/** `reading` for a read that blocks. */
export function readingNow(path: string, operation: () => void): void {
  try {
    operation();
  } catch (error) {
    throw new LayerweaveError([readFailure(path, error)]);
  }
}

/** Waits for a write to `path`; a system error becomes its diagnostic. */
export async function writing<T>(path: string, operation: Promise<T>): Promise<T> {
  try {
    return await operation;
  } catch (error) {
    if (!isSystemError(error)) throw error;
    const full = error.code === "ENOSPC" || error.code === "EDQUOT" || error.code === "EFBIG";
    throw new LayerweaveError([diagnostic(full ? weightsDiagnostics["disk-full"] : weightsDiagnostics["not-writable"], { path, problem: error.message })]);
  }
}
