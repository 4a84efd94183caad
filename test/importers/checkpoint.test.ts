import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { importCheckpoint } from "../../compiler/importers/index.js";
import { checkedLayout } from "../../compiler/lower.js";
import { LayerweaveError } from "../../core/diagnostics.js";
import { callSiteOf } from "../../core/origin.js";
import { type Config, fixtureConfig, llama31, mamba130m } from "./configs.js";

async function folderOf(files: Readonly<Record<string, Config | string>>, path = "my-model"): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "layerweave-import-"));
  onTestFinished(() => rm(root, { recursive: true, force: true }));
  const folder = join(root, path);
  await mkdir(folder, { recursive: true });
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), typeof content === "string" ? content : JSON.stringify(content));
  return folder;
}

async function failure(folder: string): Promise<LayerweaveError> {
  const error: unknown = await importCheckpoint(folder).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof LayerweaveError)) throw new Error(`expected diagnostics, got ${String(error)}`);
  return error;
}

test("a folder with everything", async () => {
  const folder = await folderOf({
    "config.json": fixtureConfig("llama"),
    "generation_config.json": { bos_token_id: 5, eos_token_id: [7, 9], transformers_version: "5.17.0" },
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "",
  });
  expect(await importCheckpoint(folder)).toMatchObject({
    folder,
    importer: { modelTypes: ["llama"] },
    spec: { name: "my-model" },
    // The config's padding token fills in for what generation_config.json does not say.
    generation: { bosTokenId: 5, eosTokenIds: [7, 9], padTokenId: 0 },
    tokenizer: { file: "tokenizer.json", config: "tokenizer_config.json", chatTemplate: "chat_template.jinja" },
    warnings: [],
  });
});

test("a folder with a config alone", async () => {
  const { generation, tokenizer } = await importCheckpoint(await folderOf({ "config.json": { ...llama31, pad_token_id: -1 } }));
  expect(generation).toEqual({ bosTokenId: 128_000, eosTokenIds: [128_001, 128_008, 128_009], padTokenId: null });
  expect(tokenizer).toBeNull();
});

test("diagnostics of an imported layout don't point into the importer", async () => {
  const { spec } = await importCheckpoint(await folderOf({ "config.json": fixtureConfig("jamba-block") }));
  const [layer] = checkedLayout(spec).layers;
  expect([spec, layer, layer?.mixer, layer?.channelMixer].map((part) => part && callSiteOf(part))).toEqual([undefined, undefined, undefined, undefined]);
});

test("names: from the hub, from a cache folder, from the folder", async () => {
  const named = async (config: Config, path?: string) => (await importCheckpoint(await folderOf({ "config.json": config }, path))).spec.name;
  expect(await named(mamba130m)).toBe("mamba-130m-hf");
  expect(await named(llama31, "models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f249a1")).toBe("Llama-3.1-8B");
  expect(await named({ ...llama31, _name_or_path: "./" })).toBe("my-model");
});

test("no folder, no config, a config that is no JSON object", async () => {
  const folder = await folderOf({});
  expect(await failure(join(folder, "nowhere"))).toMatchObject({ exitCode: 1, diagnostics: [{ code: "import/no-config" }] });
  expect(await failure(folder)).toMatchObject({ exitCode: 1, diagnostics: [{ code: "import/no-config" }] });
  expect(await failure(await folderOf({ "config.json": '{"model_type": "llama",' }))).toMatchObject({ exitCode: 1, diagnostics: [{ code: "import/config-damaged" }] });
  expect(await failure(await folderOf({ "config.json": "[]" }))).toMatchObject({ exitCode: 1, diagnostics: [{ code: "import/config-damaged" }] });
});

test("a config that is a folder can't be read", async () => {
  const folder = await folderOf({});
  await mkdir(join(folder, "config.json"));
  expect(await failure(folder)).toMatchObject({ diagnostics: [{ code: "import/unreadable" }] });
});

test("special tokens that are no ids", async () => {
  const folder = await folderOf({ "config.json": fixtureConfig("llama"), "generation_config.json": { eos_token_id: "</s>" } });
  expect(await failure(folder)).toMatchObject({ diagnostics: [{ code: "import/config-damaged", message: expect.stringMatching(/generation_config\.json.*eos_token_id/) as string }] });
});

test("an unknown key is refused unless it is allowed", async () => {
  const folder = await folderOf({ "config.json": { ...llama31, residual_multiplier: 0.22 } });
  expect(await failure(folder)).toMatchObject({ exitCode: 1, diagnostics: [{ code: "import/unknown-config-key", help: expect.stringContaining("--allow-unknown-keys") as string }] });
  expect((await importCheckpoint(folder, { allowUnknownKeys: true })).warnings).toMatchObject([{ code: "import/unknown-config-key-ignored" }]);
});
