import { importCheckpoint } from "../../compiler/importers/index.js";
import { printLayoutFile } from "../../compiler/importers/print-layout.js";
import { checkedLayout } from "../../compiler/lower.js";
import type { Terminal } from "../terminal.js";
import { writeWhole } from "../write-whole.js";

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
