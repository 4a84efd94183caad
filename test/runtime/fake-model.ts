import { createHash } from "node:crypto";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, toBinary } from "@bufbuild/protobuf";
import { AttributeProto_AttributeType, GraphProtoSchema, ModelProtoSchema, TensorProto_DataLocation, TensorProto_DataType } from "onnx-buf";
import type { Manifest } from "#dist/core/manifest.js";

/*
 * A hybrid model small enough to compute by hand, in a folder as the compiler writes it: one layer with a KV cache
 * (the mean of all embeddings so far), one with a conv state (the embedding before) and one with an SSM state (a
 * decaying sum). It keeps the runtime's tests independent of the compiler.
 */

/** 256 bytes in GPT-2's alphabet, then <pad>, <s>, </s>. */
export const vocabSize = 259;
export const bos = 257;
export const eos = 258;
const width = 4;
const decay = 0.75;

export interface FakeOptions {
  readonly contextLength?: number | null;
  readonly tokenizer?: boolean;
  readonly chatTemplate?: string;
  /** Without it the model carries a KV cache only, which can be rewound. */
  readonly recurrent?: boolean;
  readonly seed?: number;
  /** Multiplies the width of a matrix product that does nothing else than take time. */
  readonly ballast?: number;
  /** Makes the run fail on token 13 of layer 0. */
  readonly failsOnToken13?: boolean;
}

interface Weights {
  readonly embedding: Float32Array;
  readonly head: Float32Array;
}

function weightsOf(seed: number): Weights {
  let state = seed >>> 0;
  const draw = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  const fill = (n: number): Float32Array => Float32Array.from({ length: n }, draw);
  return { embedding: fill(vocabSize * width), head: fill(width * vocabSize).map((x) => x * 8) };
}

/** Logits [t, V] of a sequence from its definition, in float64. */
export function referenceLogits(ids: readonly number[], { seed = 1, recurrent = true }: FakeOptions = {}): Float64Array {
  const { embedding, head } = weightsOf(seed);
  const at = (id: number): number[] => Array.from(embedding.subarray(id * width, (id + 1) * width));
  const logits = new Float64Array(ids.length * vocabSize);
  const sum = new Array<number>(width).fill(0);
  const scan = new Array<number>(width).fill(0);
  let before = new Array<number>(width).fill(0);
  ids.forEach((id, t) => {
    const x = at(id);
    const hidden = x.map((value, d) => {
      sum[d] = (sum[d] ?? 0) + value;
      scan[d] = (scan[d] ?? 0) * decay + value;
      return (sum[d] ?? 0) / (t + 1) + (recurrent ? (scan[d] ?? 0) + (before[d] ?? 0) : 0);
    });
    before = x;
    for (let v = 0; v < vocabSize; v++) logits[t * vocabSize + v] = hidden.reduce((total, h, d) => total + h * (head[d * vocabSize + v] ?? 0), 0);
  });
  return logits;
}

const float = TensorProto_DataType.FLOAT;
const int64 = TensorProto_DataType.INT64;

function attribute(name: string, value: number | string | readonly number[] | object): object {
  if (typeof value === "string") return { name, type: AttributeProto_AttributeType.STRING, s: Buffer.from(value) };
  if (typeof value === "number") return { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) };
  if (Array.isArray(value)) return { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) };
  return { name, type: AttributeProto_AttributeType.GRAPH, g: value };
}

const node = (opType: string, input: string[], output: string[], attributes: Record<string, number | string | readonly number[] | object> = {}, name = `/${output[0]}`): object => ({
  opType,
  name,
  input,
  output,
  attribute: Object.entries(attributes).map(([key, value]) => attribute(key, value)),
});

const value = (name: string, elemType: number, shape: readonly (number | string)[]): object => ({
  name,
  type: {
    value: {
      case: "tensorType",
      value: { elemType, shape: { dim: shape.map((d) => ({ value: typeof d === "number" ? { case: "dimValue", value: BigInt(d) } : { case: "dimParam", value: d } })) } },
    },
  },
});

const constant = (name: string, values: readonly number[], dims: readonly number[] = [values.length]): object => ({
  name,
  dataType: int64,
  dims: dims.map(BigInt),
  rawData: Buffer.from(BigInt64Array.from(values, BigInt).buffer),
});
const floats = (name: string, values: readonly number[], dims: readonly number[] = []): object => ({
  name,
  dataType: float,
  dims: dims.map(BigInt),
  rawData: Buffer.from(Float32Array.from(values).buffer),
});

function graph(options: FakeOptions, external: (name: string) => { offset: number; length: number }): Uint8Array {
  const recurrent = options.recurrent ?? true;
  const ballast = options.ballast ?? 0;
  const weight = (name: string, dims: readonly number[]): object => {
    const { offset, length } = external(name);
    return {
      name,
      dataType: float,
      dims: dims.map(BigInt),
      dataLocation: TensorProto_DataLocation.EXTERNAL,
      externalData: [
        { key: "location", value: "weights.safetensors" },
        { key: "offset", value: String(offset) },
        { key: "length", value: String(length) },
      ],
    };
  };
  const scanBody = create(GraphProtoSchema, {
    name: "step",
    input: [value("h", float, ["B", width]), value("xt", float, ["B", width]), value("mt", float, ["B", 1])],
    output: [value("h_next", float, ["B", width]), value("yt", float, ["B", width])],
    // A padding token keeps the state: h + m * (decay * h + x - h).
    node: [node("Mul", ["h", "decay"], ["hd"]), node("Add", ["hd", "xt"], ["hx"]), node("Sub", ["hx", "h"], ["dh"]), node("Mul", ["dh", "mt"], ["dm"]), node("Add", ["h", "dm"], ["h_next"]), node("Identity", ["h_next"], ["yt"])],
  });
  const nodes = [
    node("Gather", ["embedding", "input_ids"], ["x"]), // [B, T, D]
    node("Shape", ["input_ids"], ["bt"]),
    node("Gather", ["bt", "one"], ["T"]),
    node("Range", ["zero", "T", "one"], ["t"]), // [T]
    node("Unsqueeze", ["lengths", "axis1"], ["len1"]),
    node("Less", ["t", "len1"], ["counts"]), // [B, T]
    node("Cast", ["counts"], ["m2"], { to: float }),
    node("Unsqueeze", ["m2", "axis2"], ["m"]), // [B, T, 1]
    // KV cache
    node("Unsqueeze", ["x", "axis1"], ["update"]), // [B, 1, T, D]
    node("TensorScatter", ["past_key_values.0.key", "update", "past_lengths"], ["present.0.key"], { axis: -2 }),
    node("Shape", ["past_key_values.0.key"], ["kvShape"]),
    node("Gather", ["kvShape", "two"], ["S"]),
    node("Range", ["zero", "S", "one"], ["s"]), // [S]
    node("Unsqueeze", ["past_lengths", "axis1"], ["past1"]),
    node("Add", ["past1", "t"], ["position"]), // [B, T]
    node("Unsqueeze", ["position", "axis2"], ["position1"]),
    node("LessOrEqual", ["s", "position1"], ["visible"]), // [B, T, S]
    node("Cast", ["visible"], ["weight"], { to: float }),
    node("Squeeze", ["present.0.key", "axis1"], ["kv"]), // [B, S, D]
    node("MatMul", ["weight", "kv"], ["total"], {}, "/layers.0/attention/total"), // [B, T, D]
    node("Add", ["position1", "one"], ["count"]),
    node("Cast", ["count"], ["countf"], { to: float }),
    node("Div", ["total", "countf"], ["mean"]),
  ];
  let hidden = "mean";
  if (recurrent) {
    nodes.push(
      // conv state: the last token that counts, or the state when there is none
      node("Transpose", ["past_key_values.1.conv_state"], ["before0"], { perm: [0, 2, 1] }), // [B, 1, D]
      node("Concat", ["before0", "x"], ["window"], { axis: 1 }), // [B, 1 + T, D]
      node("Slice", ["window", "axis0", "T1", "axis1"], ["before"]), // [B, T, D]
      node("Unsqueeze", ["lengths", "axis1"], ["lastIndex"]),
      node("GatherND", ["window", "lastIndex"], ["last"], { batch_dims: 1 }), // [B, D]
      node("Unsqueeze", ["last", "axis2"], ["present.1.conv_state"]), // [B, D, 1]
      // SSM state
      node("Squeeze", ["past_key_values.2.ssm_state", "axis2"], ["h0"]), // [B, D]
      node("Scan", ["h0", "x", "m"], ["hT", "scan"], { num_scan_inputs: 2, scan_input_axes: [1, 1], scan_output_axes: [1], body: scanBody }),
      node("Unsqueeze", ["hT", "axis2"], ["present.2.ssm_state"]), // [B, D, 1]
      node("Add", ["before", "scan"], ["recurrent"]),
      node("Add", ["mean", "recurrent"], ["mixed"]),
    );
    nodes.splice(3, 0, node("Unsqueeze", ["T", "axis0"], ["T1"]));
    hidden = "mixed";
  }
  if (options.failsOnToken13) {
    // With token 13 in the batch a reshape asks for twice the elements there are.
    nodes.push(
      node("ReduceMax", ["input_ids", "axis1"], ["largest"], { keepdims: 0 }),
      node("ReduceMax", ["largest", "axis0"], ["top"], { keepdims: 1 }),
      node("Equal", ["top", "thirteen"], ["is13"]),
      node("Cast", ["is13"], ["is13i"], { to: int64 }),
      node("Add", ["is13i", "one1"], ["copies"]), // 1, or 2 for the token that fails
      node("Concat", ["bt", "copies", "width1"], ["tooLarge"], { axis: 0 }),
      node("Concat", ["bt", "width1"], ["right"], { axis: 0 }),
      node("Reshape", [hidden, "tooLarge"], ["four"], {}, "/layers.0/attention/q_proj"),
      node("Reshape", ["four", "right"], ["checked"]),
    );
    hidden = "checked";
  }
  if (ballast > 0) {
    nodes.push(
      // Shaped by way of an input, or it would be computed once, at load time.
      node("Sub", ["T", "T"], ["none"]),
      node("Add", ["ballastShape", "none"], ["squareShape"]),
      node("ConstantOfShape", ["squareShape"], ["square"]),
      node("MatMul", ["square", "square"], ["product"]),
      node("ReduceSum", ["product"], ["nothing"], { keepdims: 0 }),
      node("Add", [hidden, "nothing"], ["heavy"]),
    );
    hidden = "heavy";
  }
  nodes.push(
    node("Unsqueeze", ["logit_indices", "axis2"], ["picks"]), // [B, L, 1]
    node("GatherND", [hidden, "picks"], ["picked"], { batch_dims: 1 }), // [B, L, D]
    node("MatMul", ["picked", "head"], ["logits"], {}, "/lm_head"),
  );
  const state = [value("past_key_values.0.key", float, ["B", 1, "S", width]), ...(recurrent ? [value("past_key_values.1.conv_state", float, ["B", width, 1]), value("past_key_values.2.ssm_state", float, ["B", width, 1])] : [])];
  const present = [value("present.0.key", float, ["B", 1, "S", width]), ...(recurrent ? [value("present.1.conv_state", float, ["B", width, 1]), value("present.2.ssm_state", float, ["B", width, 1])] : [])];
  const model = create(ModelProtoSchema, {
    irVersion: 11n,
    producerName: "fake",
    opsetImport: [{ domain: "", version: 24n }],
    graph: {
      name: "fake",
      node: nodes,
      initializer: [
        weight("embedding", [vocabSize, width]),
        weight("head", [width, vocabSize]),
        floats("decay", [decay]),
        constant("zero", [0], []),
        constant("one", [1], []),
        constant("two", [2], []),
        constant("thirteen", [13], [1]),
        constant("one1", [1]),
        constant("width1", [width]),
        constant("axis0", [0]),
        constant("axis1", [1]),
        constant("axis2", [2]),
        constant("ballastShape", [ballast, ballast]),
      ],
      input: [value("input_ids", int64, ["B", "T"]), value("past_lengths", int64, ["B"]), value("lengths", int64, ["B"]), value("logit_indices", int64, ["B", "L"]), ...state],
      output: [value("logits", float, ["B", "L", vocabSize]), ...present],
    },
  } as Parameters<typeof create<typeof ModelProtoSchema>>[1]);
  return toBinary(ModelProtoSchema, model);
}

export function safetensors(tensors: Readonly<Record<string, { dtype: string; shape: readonly number[]; bytes: Uint8Array }>>): { file: Buffer; header: Buffer; offsets: Map<string, { offset: number; length: number }> } {
  const entries: Record<string, object> = {};
  let at = 0;
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    entries[name] = { dtype, shape, data_offsets: [at, at + bytes.length] };
    at += bytes.length;
  }
  let json = JSON.stringify(entries);
  json += " ".repeat((8 - (json.length % 8)) % 8);
  const header = Buffer.alloc(8 + json.length);
  header.writeBigUInt64LE(BigInt(json.length));
  header.write(json, 8);
  const offsets = new Map<string, { offset: number; length: number }>();
  let offset = header.length;
  for (const [name, { bytes }] of Object.entries(tensors)) {
    offsets.set(name, { offset, length: bytes.length });
    offset += bytes.length;
  }
  return { file: Buffer.concat([header, ...Object.values(tensors).map((t) => t.bytes)]), header, offsets };
}

const bytesOf = (array: Float32Array): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** GPT-2's byte alphabet in byte order. */
export function byteAlphabet(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCharCode(printable ? byte : next++);
  });
}

const special = (id: number, content: string): object => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true });

export const byteLevelTokenizer = {
  version: "1.0",
  truncation: null,
  padding: null,
  added_tokens: [special(256, "<pad>"), special(bos, "<s>"), special(eos, "</s>")],
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: null,
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    type: "BPE",
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    vocab: Object.fromEntries([...byteAlphabet(), "<pad>", "<s>", "</s>"].map((token, id) => [token, id])),
    merges: [],
  },
};

/** Writes the model into a new folder and returns its path; `removeFakes` removes all of them. */
export async function fakeModel(options: FakeOptions = {}): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-fake-"));
  made.push(folder);
  const { embedding, head } = weightsOf(options.seed ?? 1);
  const weights = safetensors({
    embedding: { dtype: "F32", shape: [vocabSize, width], bytes: bytesOf(embedding) },
    head: { dtype: "F32", shape: [width, vocabSize], bytes: bytesOf(head) },
  });
  const place = (name: string): { offset: number; length: number } => weights.offsets.get(name) ?? { offset: 0, length: 0 };
  const onnx = graph(options, place);
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "model.onnx"), onnx);
  await writeFile(join(folder, "weights.safetensors"), weights.file);
  await writeFile(join(folder, "layout.json"), "{}");
  const withTokenizer = options.tokenizer ?? true;
  if (withTokenizer) {
    await writeFile(join(folder, "tokenizer.json"), JSON.stringify(byteLevelTokenizer));
    await writeFile(
      join(folder, "tokenizer_config.json"),
      JSON.stringify({ add_bos_token: true, bos_token: "<s>", eos_token: { content: "</s>" }, ...(options.chatTemplate === undefined ? {} : { chat_template: options.chatTemplate }) }),
    );
  }
  const weight = (name: string, kind: "embedding" | "lm-head", shape: number[]): Manifest["weights"][number] => ({
    name,
    kind,
    dtype: "float32",
    shape,
    file: "weights.safetensors",
    offset: place(name).offset,
    bytes: place(name).length,
    matrix: true,
    origin: { from: "random", seed: options.seed ?? 1 },
  });
  const constantSlot = (layer: number, role: "conv_state" | "ssm_state"): Manifest["state"][number] => ({
    layer,
    role,
    past: `past_key_values.${layer}.${role}`,
    present: `present.${layer}.${role}`,
    dtype: "float32",
    shape: ["B", width, 1],
    growth: "constant",
    rewind: "snapshot",
    update: "swap",
  });
  const logits = { at: "logits", tensors: [{ count: 1, elements: `${vocabSize}*B*L`, dtype: "compute" as const, use: "logits" as const }] };
  const execution = { prefill: [logits], decode: [logits] };
  const manifest: Manifest = {
    format: "layerweave",
    version: 1,
    producer: { name: "fake", version: "0" },
    target: "cpu",
    model: {
      name: "fake",
      layout: { file: "layout.json", sha256: sha256(Buffer.from("{}")) },
      vocabSize,
      dModel: width,
      nLayers: 3,
      contextLength: options.contextLength === undefined ? 4096 : options.contextLength,
      parameters: { total: 2 * vocabSize * width, active: 2 * vocabSize * width },
    },
    graph: { file: "model.onnx", bytes: onnx.length, sha256: sha256(onnx), irVersion: 11, opset: 24, computeDtype: "float32", functions: [], kernels: [] },
    inputs: {
      inputIds: { name: "input_ids", dtype: "int64", shape: ["B", "T"] },
      pastLengths: { name: "past_lengths", dtype: "int64", shape: ["B"] },
      lengths: { name: "lengths", dtype: "int64", shape: ["B"] },
      logitIndices: { name: "logit_indices", dtype: "int64", shape: ["B", "L"] },
    },
    outputs: { logits: { name: "logits", dtype: "float32", shape: ["B", "L", vocabSize] } },
    state: [
      { layer: 0, role: "key", past: "past_key_values.0.key", present: "present.0.key", dtype: "float32", shape: ["B", 1, "S", width], growth: "per-token", rewind: "trim", update: "in-place" },
      ...((options.recurrent ?? true) ? [constantSlot(1, "conv_state"), constantSlot(2, "ssm_state")] : []),
    ],
    profile: { bodies: execution, kernels: execution, operations: { gemmPerToken: 0, expertsPerToken: 0, gemmPerLogit: 2 * vocabSize * width, scanPerToken: 0, attention: [] }, routed: [] },
    files: [{ file: "weights.safetensors", bytes: weights.file.length, headerSha256: sha256(weights.header), from: "written" }],
    weights: [weight("embedding", "embedding", [vocabSize, width]), weight("head", "lm-head", [width, vocabSize])],
    origins: {
      "/layers.0/attention": { path: "layers[0].mixer" },
      "/layers.0/attention/q_proj": { path: "layers[0].mixer", at: { file: "fake.ts", line: 3, column: 7 } },
    },
    tokenizer: withTokenizer ? { file: "tokenizer.json", config: "tokenizer_config.json" } : null,
    generation: { bosTokenId: bos, eosTokenIds: [eos], padTokenId: 256 },
  };
  await writeFile(join(folder, "manifest.json"), JSON.stringify(manifest));
  return folder;
}

const made: string[] = [];

export async function removeFakes(): Promise<void> {
  for (const folder of made.splice(0)) await rm(folder, { recursive: true, force: true });
}
