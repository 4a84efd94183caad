import { access, readFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import * as z from "zod";
import { type Diagnostic, Diagnostics, fail } from "../../core/diagnostics.js";
import type { ModelSpec } from "../../dsl/model.js";
import { isMissing, isSystemError } from "../weights/system-errors.js";
import { ConfigReader, type IgnoredKey, isObject } from "./config-reader.js";
import { importDiagnostics } from "./diagnostics.js";
import { falconMamba } from "./hf/falcon-mamba.js";
import { jamba } from "./hf/jamba.js";
import { llama } from "./hf/llama.js";
import { mamba } from "./hf/mamba.js";
import { mistral } from "./hf/mistral.js";
import { mixtral } from "./hf/mixtral.js";
import type { Importer } from "./importer.js";

/** Every family that can be imported; a new one adds a line. */
const importers: readonly Importer[] = [jamba, llama, mistral, mixtral, mamba, falconMamba];

export interface ImportOptions {
  /** Report config keys that no importer knows as warnings instead of errors. */
  readonly allowUnknownKeys?: boolean;
}

/** A checkpoint folder of the Hugging Face hub, understood up to its weights. */
export interface ImportedCheckpoint {
  readonly folder: string;
  readonly importer: Importer;
  readonly spec: ModelSpec;
  readonly generation: { readonly bosTokenId: number | null; readonly eosTokenIds: number[]; readonly padTokenId: number | null };
  /** Files in `folder`; null without a tokenizer.json. A chat template may also stand in the tokenizer's config. */
  readonly tokenizer: { readonly file: string; readonly config?: string; readonly chatTemplate?: string } | null;
  /** Config keys that don't change what the model computes. */
  readonly ignoredKeys: readonly IgnoredKey[];
  readonly warnings: readonly Diagnostic[];
}

/**
 * Reads the config of a checkpoint folder, and finds what lies beside it. The weights are not touched.
 * @throws LayerweaveError `import/…`: no config, a family that is not supported, and everything that is wrong with the config.
 */
export async function importCheckpoint(folder: string, { allowUnknownKeys = false }: ImportOptions = {}): Promise<ImportedCheckpoint> {
  const values = await readJson(folder, "config.json");
  if (!values) fail(importDiagnostics["no-config"], { folder, file: "config.json" });
  const found = new Diagnostics();
  const { importer, spec, ignoredKeys } = importConfig(values, modelName(folder, values), found, allowUnknownKeys);
  const generation = readGeneration((await readJson(folder, "generation_config.json")) ?? {}, values, join(folder, "generation_config.json"));
  const [file, config, jinja, json] = await Promise.all(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"].map((name) => present(folder, name)));
  const chatTemplate = jinja ?? json;
  return {
    folder,
    importer,
    spec,
    generation,
    tokenizer: file ? { file, ...(config ? { config } : {}), ...(chatTemplate ? { chatTemplate } : {}) } : null,
    ignoredKeys,
    warnings: found.all,
  };
}

/**
 * The importer and layout of a parsed config.json.
 * @throws LayerweaveError as `importCheckpoint`; warnings stay in `found`.
 */
export function importConfig(
  values: Readonly<Record<string, unknown>>,
  name: string,
  found: Diagnostics,
  allowUnknownKeys = false,
): Pick<ImportedCheckpoint, "importer" | "spec" | "ignoredKeys"> {
  const modelType = values["model_type"];
  const importer = importers.find(({ modelTypes }) => modelTypes.includes(String(modelType)));
  if (!importer)
    fail(importDiagnostics["unsupported-model-type"], { found: modelType === undefined || modelType === null ? "" : String(modelType), supported: importers.flatMap(({ modelTypes }) => modelTypes) });
  const config = new ConfigReader(values, found, name);
  const spec = importer.toModel(config);
  config.reportUnknown(String(modelType), allowUnknownKeys);
  found.throwIfErrors();
  // A copy has no call sites: those of the constructors are in the importer, where no user can change anything.
  return { importer, spec: structuredClone(spec), ignoredKeys: config.ignored };
}

/** The model's name on the hub, from the config or a cache folder's path; otherwise the folder's name. */
function modelName(folder: string, values: Readonly<Record<string, unknown>>): string {
  const named = values["_name_or_path"];
  const hubName = typeof named === "string" ? /^[\w.-]+\/([\w.-]*\w)$/.exec(named)?.[1] : undefined;
  const path = resolve(folder);
  const cached = /^models--.+--(.+)$/.exec(basename(dirname(dirname(path))))?.[1];
  return hubName ?? cached ?? basename(path);
}

// Old configs write -1 for a token that does not exist.
const tokenId = z.int().transform((id) => (id < 0 ? null : id));
const tokenIds = z.object({ bos_token_id: tokenId.nullish(), eos_token_id: z.union([tokenId, z.array(z.int().nonnegative())]).nullish(), pad_token_id: tokenId.nullish() });

/** Special tokens: generation_config.json's, where it is silent config.json's. */
function readGeneration(own: Readonly<Record<string, unknown>>, config: Readonly<Record<string, unknown>>, path: string): ImportedCheckpoint["generation"] {
  const parse = (values: Readonly<Record<string, unknown>>, file: string) => {
    const parsed = tokenIds.safeParse(values);
    if (!parsed.success) fail(importDiagnostics["config-damaged"], { path: file, problem: z.prettifyError(parsed.error).replaceAll("\n", "; ") });
    return parsed.data;
  };
  const first = parse(own, path);
  const second = parse(config, join(dirname(path), "config.json"));
  const eos = first.eos_token_id ?? second.eos_token_id ?? [];
  return {
    bosTokenId: first.bos_token_id ?? second.bos_token_id ?? null,
    eosTokenIds: typeof eos === "number" ? [eos] : eos,
    padTokenId: first.pad_token_id ?? second.pad_token_id ?? null,
  };
}

/** A JSON object in the folder; undefined when the file is not there. */
async function readJson(folder: string, file: string): Promise<Readonly<Record<string, unknown>> | undefined> {
  const text = await reading(folder, file, (path) => readFile(path, "utf8"));
  if (text === null) return undefined;
  const path = join(folder, file);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    fail(importDiagnostics["config-damaged"], { path, problem: `it is no JSON (${(error as Error).message})` });
  }
  if (!isObject(value)) fail(importDiagnostics["config-damaged"], { path, problem: "it is no JSON object" });
  return value;
}

async function present(folder: string, file: string): Promise<string | undefined> {
  return (await reading(folder, file, access)) === null ? undefined : file;
}

/** What `read` makes of the file; null when it is not there. */
async function reading<T>(folder: string, file: string, read: (path: string) => Promise<T>): Promise<T | null> {
  const path = join(folder, file);
  try {
    return await read(path);
  } catch (error) {
    if (isMissing(error)) return null;
    if (!isSystemError(error)) throw error;
    fail(importDiagnostics.unreadable, { path, problem: error.message });
  }
}
