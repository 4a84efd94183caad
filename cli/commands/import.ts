import { randomUUID } from "node:crypto";
import { rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { importCheckpoint } from "../../compiler/importers/index.js";
import { printLayoutFile } from "../../compiler/importers/print-layout.js";
import { checkedLayout } from "../../compiler/lower.js";
import { fail } from "../../core/diagnostics.js";
import { cliDiagnostics } from "../diagnostics.js";
import type { Terminal } from "../terminal.js";

export interface ImportOptions {
  /** File to write; absent: standard output. */
  readonly out?: string;
  /** Replaces the file. */
  readonly force?: boolean;
  readonly allowUnknownKeys?: boolean;
}

/** Writes the layout of a Hugging Face folder as TypeScript. */
export async function importLayout(terminal: Terminal, folder: string, { out, force = false, allowUnknownKeys = false }: ImportOptions): Promise<void> {
  const { spec, warnings } = await importCheckpoint(folder, { allowUnknownKeys });
  checkedLayout(spec);
  const text = await printLayoutFile(spec);
  terminal.report(warnings);
  if (out === undefined) terminal.write(text);
  else {
    await writeWhole(out, text, force);
    terminal.note(`Wrote ${out}.`);
  }
  terminal.result({ file: out ?? null, layout: text, warnings });
}

/** Writes a file under a temporary name beside its own, and renames it when it is complete. */
async function writeWhole(file: string, text: string, replace: boolean): Promise<void> {
  if (!replace && (await stat(file).catch(() => undefined))) fail(cliDiagnostics["file-exists"], { file });
  const temporary = join(dirname(file), `.${basename(file)}.${randomUUID().slice(0, 8)}`);
  try {
    await writeFile(temporary, text, { flag: "wx" });
    await rename(temporary, file);
  } catch (error) {
    await rm(temporary, { force: true });
    fail(cliDiagnostics["not-writable"], { file, problem: (error as Error).message });
  }
}
