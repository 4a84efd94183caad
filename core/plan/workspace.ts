import type { Device } from "./devices.js";
import type { Sizes } from "./peak.js";
import type { KernelCall } from "./profile.js";

/**
 * Bytes of each allocation that a kernel makes beside its inputs and results, for a device that runs our kernels.
 * @param rows the call's rows at these sizes, where it has any
 * @param computeBytes of one activation
 */
export function workspaceOf(call: KernelCall, rows: number, sizes: Sizes, execution: Device["execution"], computeBytes: number): readonly number[] {
  return execution === "cpu-kernels" ? [cpuScratch(call, rows, sizes)] : gpuWorkspace(call, rows, computeBytes);
}

// What follows repeats constants and sums of kernels/cpu. A test compares them with ONNX Runtime's allocator.

const float = 4;
const int16 = 2;
const int32 = 4;
const int64 = 8;
/** `kFewRows`, `kMaxPanel` (kernels/cpu/kernels.h). */
const fewRows = 8;
const maxPanel = 32;
/** `kLinearSegmentRows` (kernels/include/cpu/linear.h), `kMoeSegmentRows` (moe.h). */
const segmentRows = 256;
/** `kBatchRows`, and the size of a `Segment` (kernels/cpu/moe.cc). */
const moeBatchRows = 2 * segmentRows;
const segmentBytes = 32;
/** A row of activations rounded to 16 bits for int8 weights: `rounded_depth`, `rounded_blocks` (kernels/cpu/kernels.h). */
const roundedValues = (depth: number) => int16 * Math.ceil(depth / 64) * 64;
const roundedScales = (depth: number) => float * Math.ceil(depth / 256);
/** `kLeastSplit`, `kMostSplits` (kernels/cpu/cached_attention.cc). */
const leastSplit = 256;
const mostSplits = 64;

function cpuScratch(call: KernelCall, rows: number, { B, T, S }: Sizes): number {
  switch (call.op) {
    case "QuantizedLinear":
      return linearScratch(rows, call.depth);
    // `mamba_inner_scratch` (kernels/cpu/mamba_inner.cc): u and delta, x_proj's result and dt, and either projection's rounded rows.
    case "MambaInner": {
      const { dInner, dState, dtRank } = call;
      const parts = [...[dInner, dInner, dtRank + 2 * dState, dtRank].map((width) => float * rows * width), Math.max(linearScratch(rows, dInner), linearScratch(rows, dtRank))];
      return inLines(parts);
    }
    // `moe_scratch` (kernels/cpu/moe.cc): router logits, choices and their order, and a batch's inputs and hidden activations.
    case "MoE": {
      const pairs = rows * call.topK;
      const chosen = Math.min(call.nExperts, pairs);
      const batchRows = Math.min(moeBatchRows, pairs + chosen * (maxPanel - 1));
      const parts = [
        float * rows * call.nExperts,
        float * pairs,
        int32 * pairs,
        int32 * pairs,
        int64 * (call.nExperts + 1),
        segmentBytes * (chosen + Math.floor(pairs / segmentRows)),
        float * batchRows * call.dFf,
        ...(call.int8
          ? [call.dModel, call.dFf].flatMap((depth) => [batchRows * roundedValues(depth), batchRows * roundedScales(depth)])
          : [float * batchRows * call.dModel]),
      ];
      return inLines(parts);
    }
    // `cached_attention_scratch` (kernels/cpu/cached_attention.cc): partial results of each split of the positions, at a full cache.
    case "CachedAttention": {
      const queries = T * (call.nHeads / call.nKvHeads);
      if (queries > fewRows) return 0;
      const longest = Math.min(S, (call.window ?? S) + T - 1);
      const split = Math.max(leastSplit, Math.ceil(longest / mostSplits));
      return float * B * call.nKvHeads * Math.ceil(longest / split) * queries * (call.headDim + 2);
    }
  }
}

/** `linear_scratch` (kernels/cpu/linear.cc): a segment's rows, rounded, in panels where they are many. */
function linearScratch(rows: number, depth: number): number {
  const held = rows <= fewRows ? rows : Math.ceil(Math.min(rows, segmentRows) / maxPanel) * maxPanel;
  return held * (roundedValues(depth) + roundedScales(depth));
}

/** Parts that each begin at a line of the cache. */
const inLines = (parts: readonly number[]) => parts.reduce((sum, bytes) => sum + Math.ceil(bytes / 64) * 64, 0);

/** Grouped products over topK · M gathered rows: the rows, gate and up side by side, and their product. */
function gpuWorkspace(call: KernelCall, rows: number, computeBytes: number): readonly number[] {
  if (call.op !== "MoE") return [];
  const pairs = call.topK * rows;
  return [pairs * call.dModel, 2 * pairs * call.dFf, pairs * call.dFf].map((elements) => elements * computeBytes);
}
