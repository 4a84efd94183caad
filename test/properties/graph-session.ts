import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { InferenceSession, Tensor } from "onnxruntime-node";
import type { StorageDtype } from "../../core/dtype.js";
import { type Manifest, parseManifest } from "../../core/manifest.js";
import type { Quantization } from "../../core/plan/weights.js";
import { compile } from "../../compiler/compile.js";
import type { Layout } from "../../dsl/resolve.js";
import type { Weights } from "../reference/evaluate.js";
import { readTensors } from "../reference/safetensors.js";

export interface RandomWeights {
  readonly seed: number;
  readonly dtype?: StorageDtype;
  readonly quantize?: Quantization;
}

/** Compiles a layout with random weights into a folder that is gone afterwards, and gives it to `use`; int8 weights as their codes. */
export async function withCompiled<T>(layout: Layout, { seed, ...types }: RandomWeights, use: (folder: string, weights: Weights) => Promise<T>): Promise<T> {
  const parent = await mkdtemp(join(tmpdir(), "layerweave-test-"));
  try {
    const folder = join(parent, "compiled");
    const { manifest } = await compile(layout, { out: folder, weights: { from: "random", seed }, ...types });
    await disturbVectors(folder, manifest, seed);
    const weights = new Map([...readTensors(join(folder, "weights.safetensors"))].map(([name, { values }]) => [name, values]));
    return await use(folder, weights);
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

/** Fresh norms are 1, fresh biases 0 and all channels' decays equal: values with which half of the mistakes would not show. */
async function disturbVectors(folder: string, { weights }: Manifest, seed: number): Promise<void> {
  const random = mulberry32(seed);
  const file = await open(join(folder, "weights.safetensors"), "r+");
  try {
    for (const { name, dtype, offset, bytes } of weights) {
      if (!/(\.bias|norm\.weight|\.D|\.A_log)$/.test(name) || dtype !== "float32") continue;
      const buffer = Buffer.alloc(bytes);
      await file.read(buffer, 0, bytes, offset);
      // dt starts between 0.001 and 0.1; larger steps make the decay matter.
      const shift = name.endsWith("dt_proj.bias") ? 2 : 0;
      for (let at = 0; at < bytes; at += 4) buffer.writeFloatLE(buffer.readFloatLE(at) + shift + random() - 0.5, at);
      await file.write(buffer, 0, bytes, offset);
    }
  } finally {
    await file.close();
  }
}

/** Tommy Ettinger's mulberry32: numbers in [0, 1). */
export function mulberry32(seed: number): () => number {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), a | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** State of a batch: one tensor per slot, and how many tokens each row holds. */
export interface GraphState {
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly lengths: readonly number[];
}

/** What a KV cache holds where nothing was written yet: it must never be seen. */
const unwritten = 1000;

/** A compiled graph, run by the letter of the manifest: what any runtime may do with it. */
export class GraphSession implements AsyncDisposable {
  private constructor(
    readonly manifest: Manifest,
    private readonly session: InferenceSession,
  ) {}

  static async open(folder: string): Promise<GraphSession> {
    const manifest = parseManifest(await readFile(join(folder, "manifest.json"), "utf8"), folder);
    const session = await InferenceSession.create(join(folder, manifest.graph.file), { logSeverityLevel: 3, intraOpNumThreads: 1, interOpNumThreads: 1 });
    return new GraphSession(manifest, session);
  }

  empty(batch: number, capacity: number): GraphState {
    const tensors = this.manifest.state.map(({ past, shape, growth }) => {
      const dims = shape.map((d) => (d === "B" ? batch : d === "S" ? capacity : Number(d)));
      const data = new Float32Array(dims.reduce((a, b) => a * b, 1)).fill(growth === "per-token" ? unwritten : 0);
      return [past, new Tensor("float32", data, dims)] as const;
    });
    return { tensors: new Map(tensors), lengths: new Array<number>(batch).fill(0) };
  }

  /** Feeds each row its tokens, at least one in the longest; rows are filled up with `padding`. Returns the logits [n, V] of each row. */
  async run(state: GraphState, rows: readonly (readonly number[])[], padding = 0): Promise<{ readonly logits: readonly Float32Array[]; readonly state: GraphState }> {
    const batch = rows.length;
    const tokens = Math.max(...rows.map((row) => row.length));
    const int64 = (values: readonly number[], dims: readonly number[]) => new Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    const padded = (row: readonly number[], fill: number) => Array.from({ length: tokens }, (_, t) => row[t] ?? fill);
    const { inputs, outputs } = this.manifest;
    const fetched = await this.session.run({
      [inputs.inputIds.name]: int64(rows.flatMap((row) => padded(row, padding)), [batch, tokens]),
      [inputs.pastLengths.name]: int64(state.lengths, [batch]),
      [inputs.lengths.name]: int64(rows.map((row) => row.length), [batch]),
      [inputs.logitIndices.name]: int64(rows.flatMap((row) => padded(row.map((_, t) => t), 0)), [batch, tokens]),
      ...Object.fromEntries(state.tensors),
    });
    const vocab = this.manifest.model.vocabSize;
    const all = fetched[outputs.logits.name]!.data as Float32Array;
    return {
      logits: rows.map((row, b) => all.slice(b * tokens * vocab, (b * tokens + row.length) * vocab)),
      state: {
        tensors: new Map(this.manifest.state.map(({ past, present }) => [past, fetched[present]!])),
        lengths: state.lengths.map((length, b) => length + rows[b]!.length),
      },
    };
  }

  /** Row b of the state as the evaluator writes it, by `layer.role`: of a KV cache the positions that count, [G, T, P]. */
  rowState({ tensors, lengths }: GraphState, b: number): ReadonlyMap<string, Float32Array> {
    return new Map(
      this.manifest.state.map(({ layer, role, past, growth }) => {
        const { data, dims } = tensors.get(past)!;
        const perRow = dims.slice(1).reduce((a, d) => a * d, 1);
        const row = (data as Float32Array).subarray(b * perRow, (b + 1) * perRow);
        if (growth === "constant") return [`${layer}.${role}`, row];
        const [, heads, capacity, headDim] = dims as [number, number, number, number];
        const counted = lengths[b]! * headDim;
        const out = new Float32Array(heads * counted);
        for (let g = 0; g < heads; g++) out.set(row.subarray(g * capacity * headDim, g * capacity * headDim + counted), g * counted);
        return [`${layer}.${role}`, out];
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session.release();
  }
}
