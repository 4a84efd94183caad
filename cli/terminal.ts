import pc from "picocolors";
import type { Diagnostic } from "../core/diagnostics.js";
import { formatBytes } from "./format.js";
import { renderForTerminal } from "./render-diagnostic.js";

/** Version of what `--json` prints; raised when a reader of an older one could misread it. */
const schemaVersion = 1;

export interface Progress {
  readonly written: number;
  readonly total: number;
}

/**
 * Where a command's output goes: results to standard output, everything else to standard error. With `json` the result
 * is one JSON object, also when the command fails.
 */
export class Terminal {
  readonly #stdoutClosed = new AbortController();
  readonly #colors = pc.createColors(process.stderr.isTTY && !process.env["NO_COLOR"] && process.env["TERM"] !== "dumb");
  #status = "";

  constructor(readonly json: boolean) {
    process.stdout.on("error", (error: NodeJS.ErrnoException) => {
      // The reader has seen enough (`… | head`): what follows is written for nobody, and is no failure.
      if (error.code !== "EPIPE") {
        this.note(`Standard output can't be written (${error.message}).`);
        process.exitCode = 1;
      }
      this.#stdoutClosed.abort(error);
    });
  }

  /** Fires when nobody reads the results any more. */
  get stdoutClosed(): AbortSignal {
    return this.#stdoutClosed.signal;
  }

  /** Text of the result; nothing in JSON mode, where `result` says it all. */
  write(text: string): void {
    if (!this.json) this.#out(text);
  }

  /** The result for `--json`. */
  result(values: Readonly<Record<string, unknown>>): void {
    if (this.json) this.#out(`${JSON.stringify({ schemaVersion, ...values }, null, 2)}\n`);
  }

  /** Diagnostics for people; the result carries them for programs. */
  report(diagnostics: readonly Diagnostic[]): void {
    if (diagnostics.length > 0) this.note(diagnostics.map((d) => renderForTerminal(d, this.#colors)).join("\n\n"));
  }

  /** A line on standard error. */
  note(text: string): void {
    this.clearStatus();
    process.stderr.write(`${text}\n`);
  }

  /** A line that later ones replace; only where a person is watching. */
  status(text: string): void {
    if (!process.stderr.isTTY || text === this.#status) return;
    this.clearStatus();
    this.#status = text;
    process.stderr.write(text.slice(0, (process.stderr.columns || 80) - 1));
  }

  clearStatus(): void {
    if (this.#status) process.stderr.write("\r\x1b[K");
    this.#status = "";
  }

  /** A bar that follows the bytes of a long write. */
  progress(label: string): (progress: Progress) => void {
    const cells = 24;
    let shownAt = -Infinity;
    return ({ written, total }) => {
      const now = performance.now();
      if (now - shownAt < 100) return;
      shownAt = now;
      const share = total === 0 ? 1 : written / total;
      const filled = Math.round(share * cells);
      this.status(`${label} ${"█".repeat(filled)}${"░".repeat(cells - filled)} ${String(Math.floor(share * 100)).padStart(3)}%  ${formatBytes(written)} of ${formatBytes(total)}`);
    };
  }

  #out(text: string): void {
    this.clearStatus();
    if (!this.stdoutClosed.aborted) process.stdout.write(text);
  }
}
