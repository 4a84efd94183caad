import { invariant } from "../../core/diagnostics.js";
import { type StorageDtype, bytesPerElement } from "../../core/dtype.js";
import type { PlanModel } from "../../core/plan/model.js";
import type { Operations, Profile } from "../../core/plan/profile.js";
import type { Quantization } from "../../core/plan/weights.js";
import type { Layout } from "../../dsl/resolve.js";
import { allParameters } from "../ir/block.js";
import type { Module, Node } from "../ir/graph.js";
import { parameterCounts } from "../ir/parameter.js";
import { lower, toBlocks } from "../lower.js";
import { int } from "../ops/definition.js";
import type { Target } from "../targets/target.js";
import { storageFor } from "../weights/storage.js";
import { liveSets } from "./profile-memory.js";
import { schedule } from "./profile-schedule.js";

/**
 * What a layout costs, for any number of rows, tokens, positions and logits. Of equal layers three are lowered and the rest
 * counted: what a layer does and holds depends on its place only through what earlier ones left behind.
 */
export function profileLayout(layout: Layout, target: Target, quantize: Quantization = "none"): Profile {
  const equal = new Map<string, number[]>();
  layout.layers.forEach((layer, i) => {
    const key = JSON.stringify(layer);
    const places = equal.get(key);
    if (places) places.push(i);
    else equal.set(key, [i]);
  });
  const layers = [...equal.values()].flatMap((places) => places.slice(-3)).sort((a, b) => a - b);
  const repeated = [...equal.values()].filter((places) => places.length > 3).map((places) => ({ layer: layers.indexOf(places.at(-3) as number), others: places.slice(0, -3) }));
  const { module } = lower({ ...layout, layers: layers.map((i) => layout.layers[i] as Layout["layers"][number]) }, target, storageFor(target, quantize, () => "float32"));

  const times = (node: Node) => {
    const layer = /^\/layers\.(\d+)\//.exec(node.name)?.[1];
    return 1 + (repeated.find((r) => r.layer === Number(layer))?.others.length ?? 0);
  };
  const execution = (inline: boolean) =>
    once(() => {
      const order = schedule(module, { inline, optimise: target.optimisedWhenLoaded });
      return { prefill: liveSets(order, { layers, repeated }, "prefill", target.computeDtype), decode: liveSets(order, { layers, repeated }, "decode", target.computeDtype) };
    });
  const [bodies, kernels] = [execution(true), execution(false)];
  // A sweep over layouts asks for one of the two.
  return {
    get bodies() {
      return target.functionBodies ? bodies() : undefined;
    },
    get kernels() {
      return kernels();
    },
    operations: operations(module, times),
    routed: routed(module, times),
  };
}

function once<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => (made ??= make());
}

/**
 * Everything the planner needs of a layout, without writing or reading a file.
 * `dtype`: storage of matrices; what is not a matrix is float32, as `compile` stores it without a checkpoint.
 * `quantize`: what the plan that is asked for quantises, which decides what a run holds; the weights are still those of `dtype`.
 */
export function planModel(layout: Layout, target: Target, dtype: StorageDtype, quantize: Quantization = "none"): PlanModel {
  const blocks = toBlocks(layout, target);
  const parameters = allParameters(blocks);
  return {
    name: layout.name,
    vocabSize: layout.vocabSize,
    dModel: layout.dModel,
    contextLength: layout.contextLength,
    parameters: parameterCounts(parameters),
    weights: parameters.map(({ name, kind, shape, matrix }) => {
      const stored = matrix ? dtype : "float32";
      return { name, kind, matrix, dtype: stored, shape, bytes: shape.reduce((a, b) => a * b, bytesPerElement[stored]) };
    }),
    tiedEmbeddings: layout.tieEmbeddings,
    state: blocks.ops.flatMap((op) => op.state),
    profile: profileLayout(layout, target, quantize),
  };
}

/** A multiplication and an addition are two operations. */
function operations({ graph }: Module, times: (node: Node) => number): Operations {
  const sums = { gemmPerToken: 0, expertsPerToken: 0, gemmPerLogit: 0, scanPerToken: 0 };
  const attention = new Map<string, { layers: number; perPosition: number; window?: number }>();
  const extent = (node: Node, input: number, axis: number) => {
    const dim = node.inputs[input]?.shape[axis];
    invariant(typeof dim === "number", `${node.name}: axis ${axis} of input ${input} is symbolic`);
    return dim;
  };
  /** A product with a matrix [rows, columns], for each row of the node's first input. */
  const product = (node: Node, rows: number, columns: number) => {
    const each = times(node) * 2 * rows * columns;
    const tokens = node.inputs[0]?.shape[0];
    invariant(tokens === "B*T" || tokens === "B*L", `${node.name} has ${tokens} rows`);
    sums[tokens === "B*T" ? "gemmPerToken" : "gemmPerLogit"] += each;
  };
  const experts = (node: Node, topK: number, dFf: number) => {
    const each = times(node) * topK * 6 * dFf * extent(node, 0, 1);
    sums.gemmPerToken += each;
    return each;
  };
  const convolution = (node: Node, channels: number, width: number) => (sums.scanPerToken += times(node) * 2 * channels * width);
  // For each element of the state: Δ·A, exp, decay·h, (Δu)·B, their sum, and h·C with its sum.
  const scan = (node: Node, channels: number, dState: number) => (sums.scanPerToken += times(node) * 7 * channels * dState);
  /** q·k and p·v, over the width of every head. */
  const attended = (node: Node, width: number) => {
    const perPosition = 4 * width;
    const window = int(node.attributes, "window");
    const key = `${perPosition} ${window}`;
    attention.set(key, { perPosition, ...(window ? { window } : {}), layers: (attention.get(key)?.layers ?? 0) + times(node) });
  };
  for (const node of graph.nodes) {
    const { attributes } = node;
    switch (node.op) {
      case "Gemm":
      case "ai.layerweave::QuantizedLinear":
        product(node, extent(node, 1, 0), extent(node, 1, 1));
        break;
      case "ai.layerweave::PackedLinear":
        product(node, int(attributes, "rows"), extent(node, 0, 1));
        break;
      case "ai.layerweave::MoE":
        sums.expertsPerToken += experts(node, int(attributes, "top_k"), extent(node, 2, 0));
        product(node, extent(node, 1, 0), extent(node, 1, 1));
        break;
      case "ai.layerweave::GatedMlp":
        experts(node, 1, extent(node, 1, 0));
        break;
      case "ai.layerweave::PackedMoE": {
        const each = experts(node, int(attributes, "top_k"), int(attributes, "d_ff"));
        if (!node.inputs[1]) break;
        sums.expertsPerToken += each;
        product(node, extent(node, 1, 0), extent(node, 1, 1));
        break;
      }
      case "ai.layerweave::CausalConv":
        convolution(node, extent(node, 1, 0), extent(node, 1, 2));
        break;
      case "ai.layerweave::SelectiveScan":
        scan(node, extent(node, 2, 0), extent(node, 2, 1));
        break;
      case "ai.layerweave::MambaInner":
      case "ai.layerweave::PackedMambaInner": {
        const [dInner, dState, dtRank] = [extent(node, 1, 0), int(attributes, "d_state"), int(attributes, "dt_rank")];
        product(node, dtRank + 2 * dState, dInner);
        product(node, dInner, dtRank);
        convolution(node, dInner, extent(node, 1, 2));
        scan(node, dInner, dState);
        break;
      }
      case "ai.layerweave::CachedAttention":
        attended(node, extent(node, 0, 2));
        break;
      case "ai.layerweave::AttentionInner":
        attended(node, int(attributes, "n_heads") * extent(node, 1, 3));
        break;
    }
  }
  return { ...sums, attention: [...attention.values()] };
}

function routed({ graph }: Module, times: (node: Node) => number): Profile["routed"] {
  const kinds = new Map<string, Profile["routed"][number]>();
  for (const node of graph.nodes) {
    if (node.op !== "ai.layerweave::MoE" && !(node.op === "ai.layerweave::PackedMoE" && node.inputs[1])) continue;
    const [nExperts, topK] = [int(node.attributes, "n_experts"), int(node.attributes, "top_k")];
    const key = `${topK}/${nExperts}`;
    kinds.set(key, { nExperts, topK, layers: (kinds.get(key)?.layers ?? 0) + times(node) });
  }
  return [...kinds.values()];
}
