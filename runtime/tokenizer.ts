import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { Template } from "@huggingface/jinja";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import * as z from "zod";
import { fail } from "../core/diagnostics.js";
import type { Manifest } from "../core/manifest.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import { TextStream, type TextStreamOptions, type TokenBytes } from "./text-stream.js";

/** One turn of a conversation. */
export interface Message {
  readonly role: string;
  readonly content: string;
}

/** A special token in `tokenizer_config.json`: its text, or an object that holds it. */
const specialToken = z.union([z.string(), z.looseObject({ content: z.string() }).transform((token) => token.content)]).nullish();

const configSchema = z.looseObject({
  add_bos_token: z.boolean().nullish(),
  add_eos_token: z.boolean().nullish(),
  bos_token: specialToken,
  eos_token: specialToken,
  unk_token: specialToken,
  pad_token: specialToken,
  chat_template: z.union([z.string(), z.array(z.looseObject({ name: z.string(), template: z.string() }))]).nullish(),
});
type Config = z.infer<typeof configSchema>;

interface DecoderStep {
  readonly type: string;
  readonly [option: string]: unknown;
}

const decoderSchema = z.looseObject({ type: z.string() });
const tokenizerSchema = z.looseObject({
  decoder: z.union([z.looseObject({ type: z.literal("Sequence"), decoders: z.array(decoderSchema) }).transform((d): DecoderStep[] => d.decoders), decoderSchema.transform((d): DecoderStep[] => [d])]).nullish(),
  post_processor: z.unknown().optional(),
});

/** GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order. */
const byteOfCharacter: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    map.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return map;
})();

const utf8 = new TextEncoder();

function byteLevelBytes(token: string): Uint8Array {
  const bytes = Array.from(token, (character) => byteOfCharacter.get(character));
  return bytes.every((byte) => byte !== undefined) ? Uint8Array.from(bytes) : utf8.encode(token);
}

interface TokenDecoding {
  readonly bytesOfToken: (token: string) => Uint8Array;
  readonly dropLeadingSpace: boolean;
}

/** Reads a tokenizer.json decoder as a map from token to bytes, which exists for byte-level and byte-fallback decoders. */
function tokenDecoding(steps: readonly DecoderStep[], unsupported: (problem: string) => never): TokenDecoding {
  const rewrites: ((token: string) => string)[] = [];
  let [byteLevel, byteFallback, dropLeadingSpace] = [false, false, false];
  for (const step of steps) {
    if (step.type === "ByteLevel") byteLevel = true;
    else if (step.type === "ByteFallback") byteFallback = true;
    else if (step.type === "Replace") {
      const replace = z.looseObject({ pattern: z.looseObject({ String: z.string() }), content: z.string() }).safeParse(step);
      if (!replace.success) unsupported("its decoder replaces by a regular expression");
      const { pattern, content } = replace.data;
      rewrites.push((token) => token.replaceAll(pattern.String, content));
    } else if (step.type === "Metaspace") {
      const metaspace = z.looseObject({ replacement: z.string(), prepend_scheme: z.string().default("always") }).safeParse(step);
      if (!metaspace.success) unsupported("its Metaspace decoder names no replacement");
      const { replacement, prepend_scheme } = metaspace.data;
      rewrites.push((token) => token.replaceAll(replacement, " "));
      dropLeadingSpace = prepend_scheme !== "never";
    } else if (step.type === "Strip") {
      const strip = z.looseObject({ content: z.literal(" "), start: z.literal(1), stop: z.literal(0) }).safeParse(step);
      if (!strip.success) unsupported("its decoder strips more than one leading space");
      dropLeadingSpace = true;
    } else if (step.type !== "Fuse") unsupported(`its decoder has a step of type ${step.type}`);
  }
  if (!byteLevel && !byteFallback && rewrites.length === 0) unsupported("it has no decoder that says which bytes a token stands for");
  return {
    dropLeadingSpace,
    bytesOfToken(token) {
      if (byteLevel) return byteLevelBytes(token);
      const byte = byteFallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1] : undefined;
      if (byte !== undefined) return Uint8Array.of(parseInt(byte, 16));
      return utf8.encode(rewrites.reduce((text, rewrite) => rewrite(text), token));
    },
  };
}

/** The tokenizer and the chat template of a compiled folder. */
export class Tokenizer {
  readonly #bytes = new Map<number, Uint8Array>();
  readonly #special: ReadonlySet<number>;

  private constructor(
    private readonly folder: string,
    private readonly inner: HuggingFaceTokenizer,
    private readonly decoding: TokenDecoding,
    private readonly config: Config,
    private readonly hasPostProcessor: boolean,
    private readonly template: string | undefined,
  ) {
    this.#special = new Set([...inner.get_added_tokens_decoder()].filter(([, token]) => token.special).map(([id]) => id));
  }

  /** @throws LayerweaveError `runtime/bad-tokenizer` */
  static async open(folder: string, files: NonNullable<Manifest["tokenizer"]>): Promise<Tokenizer> {
    const bad = (file: string, problem: string): never => fail(runtimeDiagnostics["bad-tokenizer"], { file: join(folder, file), problem });
    const parse = async <T>(file: string, schema: z.ZodType<T>): Promise<{ json: object; value: T }> => {
      let json: unknown;
      try {
        json = JSON.parse(await readFile(join(folder, file), "utf8"));
      } catch (error) {
        return bad(file, `it is not JSON (${(error as Error).message})`);
      }
      const parsed = schema.safeParse(json);
      if (!parsed.success || typeof json !== "object" || json === null) {
        const issue = parsed.error?.issues[0];
        return bad(file, `${issue?.path.join(".") || "(root)"}: ${issue?.message ?? "no object"}`);
      }
      return { json, value: parsed.data };
    };
    const tokenizer = await parse(files.file, tokenizerSchema);
    const config = files.config === undefined ? { json: {}, value: {} } : await parse(files.config, configSchema);
    const decoding = tokenDecoding(tokenizer.value.decoder ?? [], (problem) => bad(files.file, problem));
    let inner: HuggingFaceTokenizer;
    try {
      inner = new HuggingFaceTokenizer(tokenizer.json, config.json);
    } catch (error) {
      return bad(files.file, (error as Error).message);
    }
    const inConfig = config.value.chat_template;
    let template = typeof inConfig === "string" ? inConfig : inConfig?.find(({ name }) => name === "default")?.template;
    if (files.chatTemplate?.endsWith(".json")) template = (await parse(files.chatTemplate, z.looseObject({ chat_template: z.string() }))).value.chat_template;
    else if (files.chatTemplate !== undefined) template = await readFile(join(folder, files.chatTemplate), "utf8");
    return new Tokenizer(folder, inner, decoding, config.value, Boolean(tokenizer.value.post_processor), template);
  }

  /**
   * Text to token ids. With `addSpecialTokens` (default) BOS and EOS are added as transformers 5 adds them:
   * `add_bos_token` and `add_eos_token` of the config decide where they are given or where the tokenizer has no
   * post-processor, the post-processor otherwise.
   */
  encode(text: string, { addSpecialTokens = true }: { readonly addSpecialTokens?: boolean } = {}): number[] {
    const { add_bos_token: addBos, add_eos_token: addEos } = this.config;
    const byConfig = typeof addBos === "boolean" || typeof addEos === "boolean" || !this.hasPostProcessor;
    const { ids } = this.inner.encode(text, { add_special_tokens: addSpecialTokens && !byConfig });
    if (!addSpecialTokens || !byConfig) return ids;
    return [...(addBos ? this.#specialId("bos_token") : []), ...ids, ...(addEos ? this.#specialId("eos_token") : [])];
  }

  /** Token ids to text; special tokens are left out. */
  decode(ids: readonly number[]): string {
    const stream = new TextStream(this.bytesOf, { dropLeadingSpace: this.decoding.dropLeadingSpace });
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  }

  /** Text of tokens as they are generated after a prompt. */
  stream(options: Pick<TextStreamOptions, "stop"> = {}): TextStream {
    return new TextStream(this.bytesOf, options);
  }

  /** The bytes a token stands for: none for special tokens and for ids without a token. */
  readonly bytesOf: TokenBytes = (id) => {
    let bytes = this.#bytes.get(id);
    if (!bytes) {
      const token = this.#special.has(id) ? undefined : this.inner.id_to_token(id);
      bytes = token === undefined ? new Uint8Array() : this.decoding.bytesOfToken(token);
      this.#bytes.set(id, bytes);
    }
    return bytes;
  };

  /**
   * Messages to the text the model was tuned on, ready for the assistant's turn. The template writes BOS itself:
   * encode the text without special tokens.
   * @throws LayerweaveError `runtime/no-chat-template`, `runtime/chat-template-failed`
   */
  applyChatTemplate(messages: readonly Message[]): string {
    if (this.template === undefined) fail(runtimeDiagnostics["no-chat-template"], { folder: this.folder });
    const { bos_token, eos_token, unk_token, pad_token } = this.config;
    const special = Object.fromEntries(Object.entries({ bos_token, eos_token, unk_token, pad_token }).filter(([, token]) => token));
    try {
      return new Template(this.template).render({ ...special, messages, add_generation_prompt: true });
    } catch (error) {
      return fail(runtimeDiagnostics["chat-template-failed"], { problem: (error as Error).message });
    }
  }

  #specialId(kind: "bos_token" | "eos_token"): number[] {
    const token = this.config[kind];
    const id = token ? this.inner.token_to_id(token) : undefined;
    if (id === undefined) fail(runtimeDiagnostics["bad-tokenizer"], { file: this.folder, problem: `its config wants a ${kind} before or after each text, but names none in the vocabulary` });
    return [id];
  }
}
