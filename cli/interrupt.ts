import { constants } from "node:os";

/** Why a command was cut short; `exitCode` is what shells expect: 128 + the signal's number. */
export class Interrupted extends Error {
  override readonly name = "Interrupted";
  readonly exitCode: number;
  constructor(signal: "SIGINT" | "SIGTERM") {
    super(`interrupted by ${signal}`);
    this.exitCode = 128 + constants.signals[signal];
  }
}

const cancellable = new Set<AbortController>();

/**
 * Makes an interrupt abort the cancellable work under way, so that it can clean up. Without such work, and the second
 * time, the process exits at once.
 */
export function handleInterrupts(): void {
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.on(signal, () => {
      const reason = new Interrupted(signal);
      if (cancellable.size === 0) process.exit(reason.exitCode);
      for (const controller of cancellable) controller.abort(reason);
      cancellable.clear();
    });
}

/** Runs work that ends by itself, with the signal's reason, once the signal fires. */
export async function untilInterrupted<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  cancellable.add(controller);
  try {
    return await work(controller.signal);
  } finally {
    cancellable.delete(controller);
  }
}
