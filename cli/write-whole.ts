import { randomUUID } from "node:crypto";
import { rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { fail } from "../core/diagnostics.js";
import { cliDiagnostics } from "./diagnostics.js";

/** Writes a file under a temporary name beside its own, and renames it when it is complete. @throws LayerweaveError `cli/file-exists`, `cli/not-writable` */
export async function writeWhole(file: string, text: string, replace: boolean): Promise<void> {
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
