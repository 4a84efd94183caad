import { readFile } from "node:fs/promises";
import * as z from "zod";
import { Diagnostics, fail, invariant } from "../core/diagnostics.js";
import { runtimeDiagnostics } from "./diagnostics.js";
import type { Model } from "./model.js";
import { argmax } from "./sampling.js";

/** How far a model's logits lie from a reference. Errors are NaN when a logit is; NaN is never within a tolerance. */
export interface Verification {
  /** ‖Δ‖ / ‖reference‖ (Euclidean, over all logits) with each prompt fed whole. */
  readonly relativeError: number;
  /** Largest |Δ| of a single logit, with each prompt fed whole. */
  readonly maxAbsError: number;
  /** Whether greedy decoding with carried state gives `generated_ids`; null when the reference has none. */
  readonly generatedIdsMatch: boolean | null;
  /** ‖Δ‖ / ‖reference‖ over the logits those tokens were chosen from; null when the reference has no `step_logits`. */
  readonly stepRelativeError: number | null;
  /** As `relativeError`, with the prompt fed in pieces of this many tokens and the state carried between them. */
  readonly splits: { readonly "1": number; readonly "5": number; readonly "16": number };
}

/** What a reference file holds. */
interface Reference {
  /** [b][t] */
  readonly inputIds: readonly (readonly number[])[];
  /** [b, t, V] */
  readonly logits: Float32Array;
  /** [b][g] */
  readonly generatedIds: readonly (readonly number[])[] | undefined;
  /** [b, g, V] */
  readonly stepLogits: Float32Array | undefined;
}

/**
 * Compares a model with logits that another implementation computed.
 * @param file safetensors with `input_ids` [b, t] int64, `logits` [b, t, V] float32, and optionally `generated_ids`
 *   [b, g] int64 and `step_logits` [b, g, V] float32
 * @throws LayerweaveError `runtime/reference-unreadable`, `runtime/reference-mismatch`, and as `model.prefill`
 */
export async function verify(model: Model, file: string): Promise<Verification> {
  const reference = await readReference(file, model);
  const whole = compare(await logitsInPieces(model, reference.inputIds, Infinity), reference.logits);
  const split = async (piece: number): Promise<number> => compare(await logitsInPieces(model, reference.inputIds, piece), reference.logits).relative;
  const splits = { "1": await split(1), "5": await split(5), "16": await split(16) };
  const { generatedIds, stepLogits } = reference;
  const steps = generatedIds && (await decodeGreedily(model, reference.inputIds, generatedIds[0]?.length ?? 0));
  return {
    relativeError: whole.relative,
    maxAbsError: whole.maxAbs,
    generatedIdsMatch: steps ? steps.ids.every((row, b) => row.every((id, g) => id === generatedIds?.[b]?.[g])) : null,
    stepRelativeError: steps && stepLogits ? compare(steps.logits, stepLogits).relative : null,
    splits,
  };
}

function compare(actual: Float32Array, expected: Float32Array): { relative: number; maxAbs: number } {
  invariant(actual.length === expected.length, "compared logits have one shape");
  let [difference, norm, maxAbs] = [0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    const reference = expected[i] ?? NaN;
    const delta = Math.abs((actual[i] ?? NaN) - reference);
    difference += delta * delta;
    norm += reference * reference;
    maxAbs = Math.max(maxAbs, delta);
  }
  return { relative: difference === 0 && norm === 0 ? 0 : Math.sqrt(difference / norm), maxAbs };
}

/** Logits [b, t, V] of prompts of one length t, fed `piece` tokens at a time. */
async function logitsInPieces(model: Model, prompts: readonly (readonly number[])[], piece: number): Promise<Float32Array> {
  const { vocabSize } = model.manifest.model;
  const tokens = prompts[0]?.length ?? 0;
  const all = new Float32Array(prompts.length * tokens * vocabSize);
  await using state = await model.createState({ batch: prompts.length });
  for (let start = 0; start < tokens; start += piece) {
    const logits = await model.forward(state, prompts.map((prompt) => prompt.slice(start, start + piece)), { logits: "all" });
    logits.forEach((row, b) => all.set(row, (b * tokens + start) * vocabSize));
  }
  return all;
}

async function decodeGreedily(model: Model, prompts: readonly (readonly number[])[], tokens: number): Promise<{ ids: number[][]; logits: Float32Array }> {
  const { vocabSize } = model.manifest.model;
  const all = new Float32Array(prompts.length * tokens * vocabSize);
  const ids = prompts.map((): number[] => []);
  await using state = await model.createState({ batch: prompts.length });
  let logits = await model.prefill(state, prompts);
  for (let step = 0; step < tokens; step++) {
    const chosen = logits.map((row, b) => {
      all.set(row, (b * tokens + step) * vocabSize);
      return argmax(row);
    });
    chosen.forEach((id, b) => ids[b]?.push(id));
    // NaN logits choose nothing to go on with; what is missing then compares as different.
    if (chosen.some((id) => id < 0)) return { ids: ids.map((row) => [...row, ...new Array<number>(tokens - row.length).fill(-1)]), logits: all.fill(NaN) };
    if (step + 1 < tokens) logits = await model.forward(state, chosen.map((id) => [id]));
  }
  return { ids, logits: all };
}

const natural = z.int().nonnegative();
const headerSchema = z.record(z.string(), z.object({ dtype: z.string(), shape: z.array(natural), data_offsets: z.tuple([natural, natural]) }));
type Header = z.infer<typeof headerSchema>;

async function readReference(file: string, model: Model): Promise<Reference> {
  const { header, data } = await readSafetensors(file);
  const { vocabSize, contextLength } = model.manifest.model;
  const found = new Diagnostics();
  const mismatch = (tensor: string, expected: string, actual: string): void => found.report(runtimeDiagnostics["reference-mismatch"], { file, tensor, expected, found: actual });
  const take = (tensor: string, dtype: "I64" | "F32", shape: readonly (number | null)[], optional = false): { shape: readonly number[]; bytes: ArrayBuffer } | undefined => {
    const expected = `${dtype} [${shape.map((d) => d ?? "any").join(", ")}]`;
    const entry = header[tensor];
    if (!entry) {
      if (!optional) mismatch(tensor, expected, "missing");
      return undefined;
    }
    if (entry.dtype !== dtype || entry.shape.length !== shape.length || shape.some((d, i) => d !== null && d !== entry.shape[i])) {
      mismatch(tensor, expected, `${entry.dtype} [${entry.shape.join(", ")}]`);
      return undefined;
    }
    const bytes = data.subarray(...entry.data_offsets);
    const wanted = entry.shape.reduce((n, d) => n * d, dtype === "I64" ? 8 : 4);
    if (wanted === 0 || bytes.length !== wanted) {
      mismatch(tensor, wanted === 0 ? "not empty" : `${wanted} bytes, as its shape says`, `${bytes.length} bytes`);
      return undefined;
    }
    // A copy, because nothing aligns the data of a safetensors file.
    return { shape: entry.shape, bytes: Uint8Array.from(bytes).buffer };
  };
  const rows = (tensor: string, { shape, bytes }: { shape: readonly number[]; bytes: ArrayBuffer }): number[][] => {
    const ids = Array.from(new BigInt64Array(bytes), Number);
    const outside = ids.find((id) => id < 0 || id >= vocabSize);
    if (outside !== undefined) mismatch(tensor, `token ids from 0 to ${vocabSize - 1}`, `${outside} among them`);
    const length = shape[1] ?? 0;
    return Array.from({ length: shape[0] ?? 0 }, (_, b) => ids.slice(b * length, (b + 1) * length));
  };

  const input = take("input_ids", "I64", [null, null]);
  const [batch = null, tokens = null] = input?.shape ?? [];
  const logits = take("logits", "F32", [batch, tokens, vocabSize]);
  const generated = take("generated_ids", "I64", [batch, null], true);
  const steps = generated && take("step_logits", "F32", [batch, generated.shape[1] ?? 0, vocabSize], true);
  const inputIds = input && rows("input_ids", input);
  const generatedIds = generated && rows("generated_ids", generated);
  const length = (tokens ?? 0) + Math.max((generated?.shape[1] ?? 0) - 1, 0);
  if (contextLength !== null && length > contextLength) mismatch("input_ids", `at most ${contextLength} tokens with what is generated, the model's context`, `${length}`);
  found.throwIfErrors();
  invariant(inputIds && logits, "what is missing was reported");
  return { inputIds, logits: new Float32Array(logits.bytes), generatedIds, stepLogits: steps && new Float32Array(steps.bytes) };
}

/** Format: https://github.com/huggingface/safetensors#format */
async function readSafetensors(file: string): Promise<{ header: Header; data: Buffer }> {
  const unreadable = (problem: string): never => fail(runtimeDiagnostics["reference-unreadable"], { file, problem });
  let content: Buffer;
  try {
    content = await readFile(file);
  } catch (error) {
    return unreadable((error as Error).message);
  }
  const headerLength = content.length < 8 ? Infinity : Number(content.readBigUInt64LE());
  if (8 + headerLength > content.length) return unreadable("it ends before its header does");
  let json: Record<string, unknown>;
  try {
    json = z.record(z.string(), z.unknown()).parse(JSON.parse(content.toString("utf8", 8, 8 + headerLength)));
  } catch {
    return unreadable("its header is no JSON object");
  }
  delete json["__metadata__"];
  const header = headerSchema.safeParse(json);
  if (!header.success) return unreadable(`its header is damaged at ${header.error.issues[0]?.path.join(".") ?? "its root"}`);
  const data = content.subarray(8 + headerLength);
  for (const [name, { data_offsets: [begin, end] }] of Object.entries(header.data))
    if (begin > end || end > data.length) return unreadable(`${name} lies outside the file`);
  return { header: header.data, data };
}
