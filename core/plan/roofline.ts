import { invariant } from "../diagnostics.js";
import type { StateSlot } from "../manifest.js";
import type { Device } from "./devices.js";
import type { PlanModel } from "./model.js";
import { type Quantization, weightBytesRead } from "./weights.js";

/** What memory and arithmetic allow at best; a real run is slower. */
export interface Roofline {
  readonly decodeTokensPerSecond: number;
  readonly prefillSeconds: number;
  readonly decode: Bound;
  readonly prefill: Bound;
}

export interface Bound {
  readonly binds: "memory" | "arithmetic";
  /** Bytes moved, by what they belong to. */
  readonly bytes: { readonly weights: number; readonly kvCache: number; readonly state: number; readonly total: number };
  readonly operations: { readonly gemm: number; readonly attention: number; readonly scan: number; readonly experts: number; readonly total: number };
  readonly seconds: { readonly memory: number; readonly arithmetic: number };
}

export interface RooflineOptions {
  readonly device: Device;
  readonly context: number;
  readonly batch: number;
  readonly chunk?: number;
  readonly quantize: Quantization;
  /** Bytes of one row's slot with room for `positions`. */
  readonly slotBytes: (slot: StateSlot, positions: number) => number;
}

/**
 * Bounds for one decode step at the end of the context, and for the prefill of the whole context, each for all rows.
 * The larger of two times: bytes over bandwidth, and operations over rate.
 */
export function roofline(model: PlanModel, options: RooflineOptions): Roofline {
  const { device, context, batch, quantize } = options;
  const { operations } = model.profile;
  const chunk = Math.min(options.chunk ?? context, context);
  const chunks = Math.ceil(context / chunk);
  const fixed = sum(model.state.filter((s) => s.growth === "constant").map((slot) => options.slotBytes(slot, 1)));
  const kv = (positions: (window: number | undefined) => number) => sum(model.state.filter((s) => s.growth === "per-token").map((slot) => options.slotBytes(slot, positions(slot.window))));
  const attention = (positions: (window: number | undefined) => number) => sum(operations.attention.map(({ layers, perPosition, window }) => layers * perPosition * positions(window)));

  const decode = bound(device, {
    weights: weightBytesRead(model, quantize, batch),
    // The positions it sees are read, its own written.
    kvCache: batch * kv((window) => Math.min(context, window ?? context) + 1),
    state: 2 * batch * fixed,
    gemm: batch * (operations.gemmPerToken + operations.gemmPerLogit),
    attention: batch * attention((window) => Math.min(context, window ?? context)),
    scan: batch * operations.scanPerToken,
    experts: batch * operations.expertsPerToken,
  });

  const seen = (window: number | undefined) => visibleSum(context, window ?? context);
  const prefill = bound(device, {
    weights: chunks * weightBytesRead(model, quantize, batch * chunk),
    // Each chunk reads what its tokens see once, and writes its own.
    kvCache: batch * kv((window) => seenByChunks(context, chunk, window ?? context) + context),
    state: 2 * batch * chunks * fixed,
    gemm: batch * (context * operations.gemmPerToken + operations.gemmPerLogit),
    attention: batch * attention(seen),
    scan: batch * context * operations.scanPerToken,
    experts: batch * context * operations.expertsPerToken,
  });
  const time = ({ seconds }: Bound) => Math.max(seconds.memory, seconds.arithmetic);
  return { decodeTokensPerSecond: batch / time(decode), prefillSeconds: time(prefill), decode, prefill };
}

interface Work {
  readonly weights: number;
  readonly kvCache: number;
  readonly state: number;
  readonly gemm: number;
  readonly attention: number;
  readonly scan: number;
  /** Part of `gemm`. */
  readonly experts: number;
}

function bound(device: Device, { weights, kvCache, state, gemm, attention, scan, experts }: Work): Bound {
  const rate = device.matrixRates[device.computeDtype];
  invariant(rate, "profiles have a rate for their compute type");
  const bytes = weights + kvCache + state;
  const seconds = { memory: bytes / device.bandwidth.value, arithmetic: (gemm + attention) / rate.value + scan / device.vectorRate.value };
  return {
    binds: seconds.memory >= seconds.arithmetic ? "memory" : "arithmetic",
    bytes: { weights, kvCache, state, total: bytes },
    operations: { gemm, attention, scan, experts, total: gemm + attention + scan },
    seconds,
  };
}

/** Positions that the tokens 1 … n see in all, each the last `window` up to its own. */
function visibleSum(n: number, window: number): number {
  const w = Math.min(n, window);
  return (w * (w + 1)) / 2 + (n - w) * w;
}

/** Cached positions that the chunks of a prompt read in all: each those before it, within the window of its first token. */
function seenByChunks(n: number, chunk: number, window: number): number {
  const chunks = Math.ceil(n / chunk);
  const full = Math.min(chunks, Math.floor(window / chunk) + 1);
  return chunk * ((full * (full - 1)) / 2) + Math.max(chunks - full, 0) * window;
}

const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
