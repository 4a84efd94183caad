import { type Diagnostic, diagnostic, fail } from "../diagnostics.js";
import { bytesPerElement, type Dtype } from "../dtype.js";
import type { StateSlot } from "../manifest.js";
import type { Device } from "./devices.js";
import { planDiagnostics } from "./diagnostics.js";
import type { PlanModel } from "./model.js";
import { type Peak, peakFinder, roundUp } from "./peak.js";
import { type Roofline, roofline } from "./roofline.js";
import { checkedCount, formatBytes, formatCount, mostTokens } from "./sizes.js";
import { cpuWeightMemory, paddingBetween, type Quantization, type WeightItem, weightItems } from "./weights.js";

export interface PlanOptions {
  readonly device: Device;
  /** Tokens each row's state has room for, and that prefill feeds. */
  readonly context: number;
  readonly batch: number;
  /** Tokens of one prefill run; absent: the whole context at once. */
  readonly chunk?: number;
  readonly quantize: Quantization;
  /** Element type of the KV cache. Default: the device's compute type where our kernels run, else that of the graph. */
  readonly kvDtype?: Dtype;
  /** Element type of SSM states. Default: that of the graph. */
  readonly stateDtype?: Dtype;
  /** Bytes that may be used. Default: the device's memory. */
  readonly budget?: number;
}

export interface PlanBytes {
  readonly weights: number;
  readonly kvCache: number;
  readonly convState: number;
  readonly ssmState: number;
  /** A second buffer for every state, where a run can't write into the one it reads. */
  readonly stateCopies: number;
  /** Weights that are widened or packed while loading, beyond their stored bytes. */
  readonly weightCopies: number;
  /** Results of nodes at the peak. */
  readonly activations: number;
  readonly logits: number;
  /** What kernels need beside inputs and results at the peak. */
  readonly workspace: number;
  /** What rounding and pool growth add. */
  readonly allocator: number;
  readonly runtime: number;
  readonly total: number;
}

/** The same bytes by who holds them, without the runtime's own: what a measurement can be laid beside. */
export interface PlanHolders {
  /** Weights that the session's allocator doesn't hold: those used in their files, those widened while loading, and all on a card. */
  readonly weights: number;
  /** The session's allocator: packed weights, activations and workspace. */
  readonly arena: number;
  /** Buffers of state. */
  readonly state: number;
  readonly logits: number;
}

/** Something that could be done differently, and what the whole then needs. */
export interface Relief {
  readonly change: string;
  readonly saves: number;
  readonly total: number;
  readonly fits: boolean;
}

export interface Plan {
  readonly model: string;
  readonly device: string;
  readonly context: number;
  readonly batch: number;
  readonly chunk: number;
  readonly quantize: Quantization;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly bytes: PlanBytes;
  readonly holders: PlanHolders;
  readonly weights: readonly WeightItem[];
  /** The run that fills the cache's last chunk, and the step after it; the larger one counts. */
  readonly prefill: Peak;
  readonly decode: Peak;
  readonly budget: {
    readonly bytes: number;
    readonly fits: boolean;
    /** Largest context at this batch and chunk, 0 when none fits; `mostTokens` when memory sets no limit. */
    readonly maxContext: number;
    /** Largest batch at this context, 0 when none fits. */
    readonly maxBatch: number;
  };
  /** Empty when it fits. */
  readonly reliefs: readonly Relief[];
  readonly roofline: Roofline;
}

/**
 * What a model needs on a device, to the byte where that is decided by the layout.
 * @throws LayerweaveError `plan/bad-count`, `plan/no-budget`, `plan/needs-kernels`
 */
export function plan(model: PlanModel, options: PlanOptions): Plan {
  const { device, quantize } = options;
  const context = checkedCount(options.context, "context");
  const batch = checkedCount(options.batch, "batch");
  if (options.chunk !== undefined) checkedCount(options.chunk, "chunk");
  const budget = options.budget ?? device.memory?.value ?? fail(planDiagnostics["no-budget"], { device: device.name });

  const account = accountant(model, options);
  const { bytes, holders, prefill, decode } = account(context, batch);
  const fits = bytes.total <= budget;
  const maxContext = largest(mostTokens, (n) => account(n, batch).bytes.total <= budget);
  const maxBatch = largest(mostTokens, (n) => account(context, n).bytes.total <= budget);
  return {
    model: model.name,
    device: device.name,
    context,
    batch,
    chunk: Math.min(options.chunk ?? context, context),
    quantize,
    parameters: model.parameters,
    bytes,
    holders,
    weights: weightItems(model.weights, quantize),
    prefill,
    decode,
    budget: { bytes: budget, fits, maxContext, maxBatch },
    reliefs: fits ? [] : reliefs(model, options, bytes.total, budget, { maxContext, maxBatch }),
    roofline: roofline(model, { ...options, slotBytes: (slot, positions) => bytesWith(rowBytes(slot, options), positions) }),
  };
}

/** The diagnostic of a plan that does not fit, itemised; undefined when it does. */
export function overBudget({ model, bytes: { total, ...items }, budget, reliefs }: Plan): Diagnostic | undefined {
  if (budget.fits) return undefined;
  const names: Readonly<Record<keyof typeof items, string>> = {
    weights: "weights",
    kvCache: "KV cache",
    convState: "conv state",
    ssmState: "SSM state",
    stateCopies: "second state buffers",
    weightCopies: "converted weights",
    activations: "activations",
    logits: "logits",
    workspace: "kernel workspace",
    allocator: "allocator rounding",
    runtime: "runtime",
  };
  const listed = (Object.keys(names) as (keyof typeof items)[])
    .filter((key) => items[key] > 0)
    .sort((a, b) => items[b] - items[a])
    .map((key) => `${names[key]} ${formatBytes(items[key])}`);
  const helping = reliefs.filter(({ fits }) => fits);
  const gives = helping.length > 0 ? `It fits with ${helping.map(({ change, total: then }) => `${change} (${formatBytes(then)})`).join(", or ")}.` : "No setting makes it fit; take a smaller layout or a larger device.";
  return diagnostic(planDiagnostics["over-budget"], {
    model,
    total: formatBytes(total),
    budget: formatBytes(budget.bytes),
    over: formatBytes(total - budget.bytes),
    items: listed.join(", "),
    gives,
  });
}

type Account = (context: number, batch: number) => Pick<Plan, "bytes" | "holders" | "prefill" | "decode">;

/** The bytes of a model as a function of context and batch, everything else fixed. */
function accountant(model: PlanModel, options: PlanOptions): Account {
  const { device, quantize } = options;
  const { execution } = device;
  const profile = model.profile[execution === "bodies" ? "bodies" : "kernels"] ?? fail(planDiagnostics["needs-kernels"], { model: model.name, device: device.name });
  const prefillPeak = peakFinder(profile.prefill, execution);
  const decodePeak = peakFinder(profile.decode, execution);
  const weights = weightItems(model.weights, quantize).reduce((sum, item) => sum + item.bytes, 0);
  const granularity = device.allocator.granularity.value;
  // On a card all weights lie in one block, each where accesses are aligned.
  const held = execution === "kernels" ? { mapped: weights, widened: 0, packed: 0 } : cpuWeightMemory(model, quantize, execution);
  const padding = execution === "kernels" ? paddingBetween(model.weights, quantize, granularity) : 0;
  const computeBytes = bytesPerElement[device.computeDtype];
  const rows = model.state.map((slot) => ({ slot, bytes: rowBytes(slot, options) }));
  const ofRole = (role: StateSlot["role"]) => added(rows.filter(({ slot }) => slot.role === role).map(({ bytes }) => bytes));
  const state = { key: ofRole("key"), value: ofRole("value"), conv_state: ofRole("conv_state"), ssm_state: ofRole("ssm_state") };
  const copies = added(rows.filter(({ slot }) => hasSecondBuffer(slot, execution)).map(({ bytes }) => bytes));
  return (context, batch) => {
    const sizes = { B: batch, S: context, L: 1 };
    const tokens = Math.min(options.chunk ?? context, context);
    const decode = decodePeak({ ...sizes, T: 1 }, computeBytes, granularity);
    const prefill = tokens === 1 ? decode : prefillPeak({ ...sizes, T: tokens }, computeBytes, granularity);
    const peak = prefill.total >= decode.total ? prefill : decode;
    const bytesOf = (row: RowBytes) => batch * bytesWith(row, context);
    const parts = {
      weights,
      kvCache: bytesOf(state.key) + bytesOf(state.value),
      convState: bytesOf(state.conv_state),
      ssmState: bytesOf(state.ssm_state),
      stateCopies: bytesOf(copies),
      weightCopies: held.mapped + held.widened + held.packed - weights,
      activations: peak.activations,
      logits: peak.logits,
      workspace: peak.workspace,
      allocator: peak.rounding + poolGrowth(peak.total - (execution === "bodies" ? 0 : peak.logits), device) + padding,
      runtime: device.runtime.value,
    };
    const holders = {
      weights: held.mapped + held.widened + padding,
      arena: held.packed + parts.activations + parts.workspace + parts.allocator - padding,
      state: parts.kvCache + parts.convState + parts.ssmState + parts.stateCopies,
      logits: parts.logits,
    };
    return { bytes: { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) }, holders, prefill, decode };
  };
}

/**
 * Stock ONNX Runtime writes what it can't write in place beside what it reads. Sessions of ours do so for recurrent state, which
 * a prefill that fails halfway must leave as it was; what is written into a KV cache lies beyond the positions that count.
 */
function hasSecondBuffer({ update, rewind }: StateSlot, execution: Device["execution"]): boolean {
  return execution === "bodies" ? update === "swap" : rewind === "snapshot";
}

/** Bytes of state for each row: some, and some for each position it has room for. */
interface RowBytes {
  readonly fixed: number;
  readonly perPosition: number;
}

function rowBytes(slot: StateSlot, options: PlanOptions): RowBytes {
  const bytes = slot.shape.reduce((product: number, extent) => (typeof extent === "number" ? product * extent : product), bytesPerElement[dtypeOf(slot, options)]);
  return slot.growth === "per-token" ? { fixed: 0, perPosition: bytes } : { fixed: bytes, perPosition: 0 };
}

const bytesWith = ({ fixed, perPosition }: RowBytes, positions: number): number => fixed + positions * perPosition;

const added = (parts: readonly RowBytes[]): RowBytes => ({ fixed: parts.reduce((sum, p) => sum + p.fixed, 0), perPosition: parts.reduce((sum, p) => sum + p.perPosition, 0) });

function dtypeOf({ role, dtype }: StateSlot, { device, kvDtype, stateDtype }: PlanOptions): Dtype {
  if (role === "ssm_state") return stateDtype ?? dtype;
  const own = device.execution === "bodies" ? dtype : device.computeDtype;
  return role === "conv_state" ? own : (kvDtype ?? own);
}

/** First region of ONNX Runtime's arena, each further one twice as large up to 1 GiB (`BFCArena`, kNextPowerOfTwo). */
const firstRegion = 2 ** 20;
const largestRegion = 2 ** 30;

/**
 * What a growing pool holds beyond `bytes`. `half-again`: sessions on a card make the arena take one and a half times the peak
 * at once. Left to itself it asks for what it lacks and never joins what it asked for at different times, 1.5 to 2.5 times the peak
 * in the end (docs/performance.md).
 */
function poolGrowth(bytes: number, { allocator }: Device): number {
  if (allocator.growth === "exact") return 0;
  if (allocator.growth === "half-again") return Math.ceil(bytes / 2);
  let pool = 0;
  for (let region = firstRegion; pool < bytes; region *= 2) {
    if (region >= largestRegion) return pool + roundUp(bytes - pool, largestRegion) - bytes;
    pool += region;
  }
  return pool - bytes;
}

/** Largest n in 1 … most that holds, for a condition that only ever stops holding; 0 when none does. */
function largest(most: number, holds: (n: number) => boolean): number {
  if (!holds(1)) return 0;
  let [low, high] = [1, 2];
  while (high <= most && holds(high)) [low, high] = [high, high * 2];
  high = Math.min(high, most + 1);
  while (high - low > 1) {
    const middle = low + Math.floor((high - low) / 2);
    if (holds(middle)) low = middle;
    else high = middle;
  }
  return low;
}

const usualChunk = 8192;

/** What would have to give, alone and together. */
function reliefs(model: PlanModel, options: PlanOptions, total: number, budget: number, { maxContext, maxBatch }: { maxContext: number; maxBatch: number }): readonly Relief[] {
  const found: Relief[] = [];
  const consider = (change: string, other: Partial<PlanOptions>) => {
    const changed = { ...options, ...other };
    const then = accountant(model, changed)(changed.context, changed.batch).bytes.total;
    if (then < total) found.push({ change, saves: total - then, total: then, fits: then <= budget });
  };
  const { context, quantize, batch } = options;
  const chunked = (options.chunk ?? context) > usualChunk && context > usualChunk ? { chunk: usualChunk } : undefined;
  const chunkText = `prefill in chunks of ${formatCount(usualChunk)} instead of ${formatCount(Math.min(options.chunk ?? context, context))}`;
  if (chunked) consider(chunkText, chunked);
  for (const level of ["experts-int8", "int8"] as const) {
    if (quantize === level || quantize === "int8") continue;
    const text = level === "int8" ? "int8 linear layers" : "int8 experts and MLPs";
    consider(text, { quantize: level });
    if (chunked) consider(`${text}, ${chunkText}`, { quantize: level, ...chunked });
  }
  if (maxContext > 0) consider(`a context of at most ${maxContext} tokens`, { context: maxContext });
  if (maxBatch > 0 && batch > 1) consider(`a batch of at most ${maxBatch}`, { batch: maxBatch });
  return found;
}
