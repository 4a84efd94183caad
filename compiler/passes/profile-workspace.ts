import { addDims, type Dim, elementCount, mulDims } from "../../core/dim.js";
import { invariant } from "../../core/diagnostics.js";
import type { Dtype } from "../../core/dtype.js";
import type { Graph, Value } from "../ir/graph.js";
import type { KernelCall } from "../../core/plan/profile.js";
import { int } from "../ops/definition.js";
import type { Step } from "./profile-schedule.js";

/** A moment within one node: what it holds beside its inputs, and whether its results are there yet. */
export interface Moment {
  readonly results: boolean;
  readonly temporary: readonly Temporary[];
  /** One of our ops, when it runs as a kernel of its own: the device decides what that needs. */
  readonly kernel?: KernelCall;
}

export interface Temporary {
  readonly elements: Dim;
  readonly dtype: Dtype;
}

/** `MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD` (mlas/lib/convolve.cpp) in float32 elements; one thread. */
const convBuffer = 16_384;

/**
 * The moments of a node. Nodes that aren't named here allocate their results and nothing else; what the named ones allocate was
 * read off the allocator of ONNX Runtime 1.29's CPU provider, and is held to it by tests.
 */
export function moments(step: Step, phase: "prefill" | "decode"): readonly Moment[] {
  const one = (...temporary: Moment["temporary"]): readonly Moment[] => [{ results: true, temporary }];
  switch (step.op) {
    case "Attention": {
      const [q, k] = [at(step, 0), at(step, 1)]; // [B, H, T, P], [B, G, S, P]
      const positions = mulDims(q.shape[2] as Dim, k.shape[2] as Dim);
      const scores = float(mulDims(q.shape[0] as Dim, q.shape[1] as Dim, positions));
      // The boolean mask is turned into numbers to be added.
      return one(scores, float(mulDims(q.shape[0] as Dim, positions)));
    }
    case "Conv":
      return phase === "decode" ? one() : one(float(convBuffer));
    case "Scan":
      return scan(step, phase);
    case "ai.layerweave::QuantizedLinear":
      return kernel({ op: "QuantizedLinear", rows: rowsOf(step), depth: extent(step, 1, 1) }); // [N, K]
    case "ai.layerweave::MambaInner":
      return kernel({ op: "MambaInner", rows: rowsOf(step), dInner: extent(step, 1, 0), dState: int(step.attributes, "d_state"), dtRank: int(step.attributes, "dt_rank") });
    case "ai.layerweave::GatedMlp":
      // The kernel is that of MoE, with one expert.
      return kernel({ op: "MoE", int8: at(step, 1).dtype === "int8", rows: rowsOf(step), nExperts: 1, topK: 1, dModel: extent(step, 1, 1), dFf: extent(step, 1, 0) });
    case "ai.layerweave::MoE":
      return kernel({
        op: "MoE",
        int8: at(step, 2).dtype === "int8",
        rows: rowsOf(step),
        nExperts: int(step.attributes, "n_experts"),
        topK: int(step.attributes, "top_k"),
        dModel: extent(step, 2, 1), // [F, D]
        dFf: extent(step, 2, 0),
      });
    case "ai.layerweave::CachedAttention": {
      const window = int(step.attributes, "window");
      return kernel({
        op: "CachedAttention",
        nHeads: int(step.attributes, "n_heads"),
        nKvHeads: int(step.attributes, "n_kv_heads"),
        headDim: extent(step, 3, 3), // [B, G, S, P]
        ...(window > 0 ? { window } : {}),
      });
    }
    case "ai.layerweave::PackedLinear": {
      const x = at(step, 0); // [M, K]
      return phase === "decode" ? one() : one(gathered(x.shape[0] as Dim, 1, x.shape[1] as number, x.dtype));
    }
    case "ai.layerweave::PackedMoE": {
      const x = at(step, 0); // [M, D]
      const [tokens, dModel] = [x.shape[0] as Dim, x.shape[1] as number];
      const experts = int(step.attributes, "n_experts");
      const choices = mulDims(int(step.attributes, "top_k"), tokens);
      // Logits, and four numbers for each choice: its expert, its weight, and its place in either order.
      const routing: readonly Temporary[] = step.inputs[1] ? [float(mulDims(tokens, experts)), { elements: mulDims(4, choices), dtype: "int32" }] : [];
      if (phase === "decode") return one(...routing);
      return one(...routing, ...[dModel, int(step.attributes, "d_ff")].map((width) => gathered(choices, experts, width, x.dtype)));
    }
    case "ai.layerweave::PackedMambaInner": {
      if (phase === "decode") return one();
      const [xz, conv] = [at(step, 0), at(step, 1)]; // [M, 2I], [I, 1, K]
      const [tokens, dInner] = [xz.shape[0] as Dim, conv.shape[0] as number];
      const projected = int(step.attributes, "dt_rank") + 2 * int(step.attributes, "d_state");
      // u; dt, B and C before and after their norms; u again as the product with x_proj reads it.
      const tensors = [dInner, projected, projected].map((width): Temporary => ({ elements: mulDims(tokens, width), dtype: xz.dtype }));
      return one(...tensors, gathered(tokens, 1, dInner, xz.dtype));
    }
    default:
      return one();
  }
}

/** Rows as the CUDA kernels' tiles read them: each group's from a multiple of 8 on, in columns of 128 (kernels/cuda/packed_gemm.cuh). */
function gathered(rows: Dim, groups: number, columns: number, dtype: Dtype): Temporary {
  return { elements: mulDims(addDims(rows, 7 * groups + 7), Math.ceil(columns / 128) * 128), dtype };
}

/**
 * Scan (core/providers/cpu/controlflow/scan_9.cc) turns what it scans token first, keeps two copies of the state to alternate
 * between, gathers its output token first, and turns that back at the end.
 */
function scan(step: Step, phase: "prefill" | "decode"): readonly Moment[] {
  const scanned = int(step.attributes, "num_scan_inputs");
  const states = step.inputs.length - scanned;
  const turned = step.inputs.slice(states).map((v) => tensor(v));
  const state = step.inputs.slice(0, states).map((v) => tensor(v));
  const copies = phase === "decode" ? [] : [...state, ...state];
  const outputs = step.outputs.slice(states).map((v) => tensor(v));
  const body = step.attributes.body as Graph;
  // Inside a step three tensors as large as the state are alive at once: what is kept, what is added, and the exponent.
  const large = body.nodes.flatMap((n) => n.outputs).filter((v) => elementCount(v.shape) === state[0]?.elements);
  const inside = large.slice(0, 3).map((v) => tensor(v));
  return [
    { results: false, temporary: [...turned, ...copies, ...inside, ...(phase === "decode" ? [] : outputs)] },
    { results: true, temporary: [...turned, ...copies, ...outputs] },
  ];
}

const float = (elements: Dim): Temporary => ({ elements, dtype: "float32" });

function tensor(value: Value | null): Temporary {
  invariant(value, "a scan without an input");
  return { elements: elementCount(value.shape), dtype: value.dtype };
}

const kernel = (call: KernelCall): readonly Moment[] => [{ results: true, temporary: [], kernel: call }];

/** M of the input [M, …] that a kernel works on row by row. */
const rowsOf = (step: Step): Dim => at(step, 0).shape[0] as Dim;

function extent(step: Step, input: number, axis: number): number {
  const dim = at(step, input).shape[axis];
  invariant(typeof dim === "number", `${step.name}: axis ${axis} of input ${input} is no number`);
  return dim;
}

function at(step: Step, index: number): Value {
  const value = step.inputs[index];
  invariant(value, `${step.name} has no input ${index}`);
  return value;
}
