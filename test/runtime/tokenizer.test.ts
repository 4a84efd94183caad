import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import * as fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { Tokenizer } from "#dist/runtime/tokenizer.js";
import { codes } from "./diagnostics.js";
import { bos, byteAlphabet, byteLevelTokenizer, eos } from "./fake-model.js";

const folders: string[] = [];
afterAll(async () => {
  for (const folder of folders) await rm(folder, { recursive: true });
});

async function open(tokenizer: object, config?: object, chatTemplate?: string, templateFile = "chat_template.jinja"): Promise<Tokenizer> {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-tokenizer-"));
  folders.push(folder);
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  if (config) await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(config));
  if (chatTemplate !== undefined) await writeFile(join(folder, templateFile), chatTemplate);
  return Tokenizer.open(folder, { file: "tokenizer.json", ...(config && { config: "tokenizer_config.json" }), ...(chatTemplate !== undefined && { chatTemplate: templateFile }) });
}

/** Llama's: no pre-tokenizer, ▁ for spaces, unknown characters as bytes. */
const byteFallback = {
  ...byteLevelTokenizer,
  normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, { type: "Replace", pattern: { String: " " }, content: "▁" }] },
  pre_tokenizer: null,
  decoder: {
    type: "Sequence",
    decoders: [{ type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "ByteFallback" }, { type: "Fuse" }, { type: "Strip", content: " ", start: 1, stop: 0 }],
  },
  added_tokens: [
    { id: 0, content: "<unk>", single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
    { id: 1, content: "<s>", single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
  ],
  model: {
    ...byteLevelTokenizer.model,
    unk_token: "<unk>",
    byte_fallback: true,
    fuse_unk: true,
    vocab: Object.fromEntries(["<unk>", "<s>", ...Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`), "▁", "h", "i", "▁h", "▁hi"].map((token, id) => [token, id])),
    merges: [["▁", "h"], ["▁h", "i"]],
  },
};
const template = (add: boolean): object => ({
  type: "TemplateProcessing",
  single: [...(add ? [{ SpecialToken: { id: "<s>", type_id: 0 } }] : []), { Sequence: { id: "A", type_id: 0 } }],
  pair: [],
  special_tokens: { "<s>": { id: "<s>", ids: [bos], tokens: ["<s>"] } },
});

describe("encode", () => {
  const [a, b] = [97, 98];
  test.each<[string, object | null, object | undefined, number[]]>([
    ["no post-processor and no config", null, undefined, [a, b]],
    ["no post-processor, BOS wanted", null, { add_bos_token: true, bos_token: "<s>" }, [bos, a, b]],
    ["no post-processor, BOS and EOS wanted", null, { add_bos_token: true, add_eos_token: true, bos_token: "<s>", eos_token: { content: "</s>" } }, [bos, a, b, eos]],
    ["a post-processor that adds BOS", template(true), {}, [bos, a, b]],
    ["a post-processor that adds BOS and a config that wants it too", template(true), { add_bos_token: true, bos_token: "<s>" }, [bos, a, b]],
    ["a post-processor that adds BOS and a config against it", template(true), { add_bos_token: false, bos_token: "<s>" }, [a, b]],
    ["a post-processor that adds nothing and a config that wants BOS", template(false), { add_bos_token: true, bos_token: "<s>" }, [bos, a, b]],
  ])("with %s", async (_, postProcessor, config, expected) => {
    const tokenizer = await open({ ...byteLevelTokenizer, post_processor: postProcessor }, config);
    expect(tokenizer.encode("ab")).toEqual(expected);
    expect(tokenizer.encode("ab", { addSpecialTokens: false })).toEqual([a, b]);
  });

  test("a config that wants a BOS it doesn't name is a diagnostic", async () => {
    const tokenizer = await open(byteLevelTokenizer, { add_bos_token: true });
    expect(await codes((async () => tokenizer.encode("a"))())).toEqual(["runtime/bad-tokenizer"]);
  });
});

describe("tiny-jamba's tokenizer", () => {
  const root = new URL("../../", import.meta.url);
  const reference = JSON.parse(readFileSync(new URL("test/fixtures/tiny-jamba/reference.json", root), "utf8")) as { greedy: Record<string, { ids: number[]; text: string }> };

  test.each(Object.entries(reference.greedy))("encodes %j as transformers does, and streams its continuation", async (prompt, { ids, text }) => {
    const tokenizer = await Tokenizer.open(fileURLToPath(new URL("examples/tiny-jamba", root)), { file: "tokenizer.json", config: "tokenizer_config.json" });
    const encoded = tokenizer.encode(prompt);
    expect(encoded).toEqual(ids.slice(0, encoded.length));
    expect(encoded[0]).toBe(1);
    expect(tokenizer.decode(ids)).toBe(text);
    const stream = tokenizer.stream();
    expect(prompt + ids.slice(encoded.length).map((id) => stream.push(id)).join("") + stream.flush()).toBe(text);
  });
});

describe("decode", () => {
  test("byte-level: any text survives, special tokens leave nothing", async () => {
    const tokenizer = await open(byteLevelTokenizer, { add_bos_token: true, bos_token: "<s>" });
    fc.assert(fc.property(fc.string({ unit: "grapheme" }), (text) => {
      expect(tokenizer.decode([...tokenizer.encode(text), eos])).toBe(text);
    }));
    expect(tokenizer.decode([72, 100_000, eos])).toBe(String.fromCharCode(72));
  });

  test("the byte alphabet is the one the published tokenizers use", async () => {
    const tokenizer = await open(byteLevelTokenizer);
    byteAlphabet().forEach((_, byte) => expect([...tokenizer.bytesOf(byte)]).toEqual([byte]));
    const theirs = new HuggingFaceTokenizer(byteLevelTokenizer, {});
    fc.assert(fc.property(fc.string({ unit: "grapheme", minLength: 1 }), (text) => {
      expect(tokenizer.encode(text)).toEqual(theirs.encode(text).ids);
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(theirs.decode(tokenizer.encode(text), { clean_up_tokenization_spaces: false }));
    }));
  });

  test("byte fallback: as the published decoder, with one leading space less at the start only", async () => {
    const tokenizer = await open(byteFallback, {});
    const theirs = new HuggingFaceTokenizer(byteFallback, {});
    for (const text of ["hi hi", "hi", "grün 🙂 hi", "  hi"]) {
      const ids = tokenizer.encode(text);
      expect(tokenizer.decode(ids)).toBe(text);
      expect(theirs.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false })).toBe(text);
    }
    const stream = tokenizer.stream();
    expect(tokenizer.encode(" hi").map((id) => stream.push(id)).join("")).toBe("  hi");
  });

  test.each([
    ["no decoder", null],
    ["WordPiece", { type: "WordPiece" }],
    ["a regular expression", { type: "Replace", pattern: { Regex: "x" }, content: "" }],
    ["two stripped spaces", { type: "Strip", content: " ", start: 2, stop: 0 }],
  ])("a tokenizer with %s is refused", async (_, decoder) => {
    expect(await codes(open({ ...byteLevelTokenizer, decoder }))).toEqual(["runtime/bad-tokenizer"]);
  });
});

describe("applyChatTemplate", () => {
  const messages = [{ role: "user", content: "hi" }];
  const source = "{{ bos_token }}[{{ messages[0].content }}]{% if add_generation_prompt %}>{% endif %}";

  test("reads it from the config, from a list of named ones, or from its own file", async () => {
    const config = { bos_token: "<s>" };
    expect((await open(byteLevelTokenizer, { ...config, chat_template: source })).applyChatTemplate(messages)).toBe("<s>[hi]>");
    const named = [{ name: "tool_use", template: "tools" }, { name: "default", template: source }];
    expect((await open(byteLevelTokenizer, { ...config, chat_template: named })).applyChatTemplate(messages)).toBe("<s>[hi]>");
    expect((await open(byteLevelTokenizer, { ...config, chat_template: "old" }, source)).applyChatTemplate(messages)).toBe("<s>[hi]>");
    const json = JSON.stringify({ chat_template: source });
    expect((await open(byteLevelTokenizer, config, json, "chat_template.json")).applyChatTemplate(messages)).toBe("<s>[hi]>");
  });

  test("none, one that refuses the messages, and one that can't be read are diagnostics", async () => {
    const render = async (config: object): Promise<string> => (await open(byteLevelTokenizer, config)).applyChatTemplate(messages);
    expect(await codes(render({}))).toEqual(["runtime/no-chat-template"]);
    expect(await codes(render({ chat_template: "{{ raise_exception('roles must alternate') }}" }))).toEqual(["runtime/chat-template-failed"]);
    expect(await codes(render({ chat_template: "{% for %}" }))).toEqual(["runtime/chat-template-failed"]);
    expect(await codes(render({ chat_template: 5 }))).toEqual(["runtime/bad-tokenizer"]);
  });
});
