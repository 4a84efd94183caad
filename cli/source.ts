import { type Dirent } from "node:fs";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { importCheckpoint, type ImportedCheckpoint } from "../compiler/importers/index.js";
import { checkedLayout } from "../compiler/lower.js";
import { fail } from "../core/diagnostics.js";
import { type Manifest, manifestFile, parseManifest } from "../core/manifest.js";
import type { Layout } from "../dsl/resolve.js";
import { cliDiagnostics } from "./diagnostics.js";
import { loadLayout } from "./load-layout.js";

/** What a command was pointed at, with its layout expanded and checked. */
export type Source =
  | { readonly kind: "layout-file"; readonly path: string; readonly layout: Layout }
  | { readonly kind: "checkpoint"; readonly path: string; readonly layout: Layout; readonly checkpoint: ImportedCheckpoint }
  | { readonly kind: "compiled"; readonly path: string; readonly layout: Layout; readonly manifest: Manifest };

export interface SourceOptions {
  /** Reports unknown keys of a config.json as warnings instead of errors. */
  readonly allowUnknownKeys?: boolean;
}

/**
 * Opens a layout file (.ts), a Hugging Face folder or a compiled folder.
 * @throws LayerweaveError with everything that is wrong with it.
 */
export async function openSource(path: string, { allowUnknownKeys = false }: SourceOptions = {}): Promise<Source> {
  const info = await stat(path).catch((error: NodeJS.ErrnoException) =>
    error.code === "ENOENT" || error.code === "ENOTDIR" ? fail(cliDiagnostics["source-not-found"], { source: path }) : fail(cliDiagnostics["source-unreadable"], { source: path, problem: error.message }),
  );
  if (!info.isDirectory()) {
    const { model } = await loadLayout(path);
    return { kind: "layout-file", path, layout: checkedLayout(model()) };
  }
  const entries = await readdir(path, { withFileTypes: true }).catch((error: Error) => fail(cliDiagnostics["source-unreadable"], { source: path, problem: error.message }));
  const names = new Set(entries.map(({ name }) => name));
  if (names.has(manifestFile)) {
    const text = await readFile(join(path, manifestFile), "utf8").catch((error: Error) => fail(cliDiagnostics["source-unreadable"], { source: path, problem: error.message }));
    const manifest = parseManifest(text, path);
    // It comes with the ONNX writer, which the other kinds of source do without.
    const { readCompiledLayout } = await import("../compiler/compile.js");
    return { kind: "compiled", path, manifest, layout: await readCompiledLayout(path, manifest) };
  }
  if (names.has("config.json")) {
    const checkpoint = await importCheckpoint(path, { allowUnknownKeys });
    return { kind: "checkpoint", path, checkpoint, layout: checkedLayout(checkpoint.spec) };
  }
  return fail(cliDiagnostics["source-not-recognised"], { source: path, found: describeFolder(entries) });
}

/** Whether a checkpoint folder holds weights beside its config. */
export async function hasWeights(folder: string): Promise<boolean> {
  return (await readdir(folder)).some((file) => file.includes(".safetensors"));
}

function describeFolder(entries: readonly Dirent[]): string {
  if (entries.length === 0) return "an empty folder";
  const shown = entries.slice(0, 4).map((entry) => entry.name + (entry.isDirectory() ? "/" : ""));
  return `a folder without ${manifestFile} and config.json (it holds ${shown.join(", ")}${entries.length > shown.length ? ` and ${entries.length - shown.length} more` : ""})`;
}
