import { invariant } from "../../core/diagnostics.js";
import type { Attributes, Value } from "../ir/graph.js";
import { type CustomOpDefinition, type Inferred, Inputs, type KernelOpDefinition, type OpDefinition } from "./definition.js";
import { attentionInner } from "./layerweave/attention-inner.js";
import { cachedAttention } from "./layerweave/cached-attention.js";
import { causalConv } from "./layerweave/causal-conv.js";
import { gatedMlp } from "./layerweave/gated-mlp.js";
import { mambaInner, packedMambaInner } from "./layerweave/mamba-inner.js";
import { moe } from "./layerweave/moe.js";
import { packedLinear } from "./layerweave/packed-linear.js";
import { packedMoe } from "./layerweave/packed-moe.js";
import { quantizedLinear } from "./layerweave/quantized-linear.js";
import { residualNorm } from "./layerweave/residual-norm.js";
import { selectTokens } from "./layerweave/select-tokens.js";
import { selectiveScan } from "./layerweave/selective-scan.js";
import { standardOps } from "./standard.js";

export const customDomain = "ai.layerweave";
export const customDomainVersion = 1;

/** Our ops that run anywhere, by their bodies. A new one adds a line. */
export const customOps: Readonly<Record<string, CustomOpDefinition>> = {
  [`${customDomain}::AttentionInner`]: attentionInner,
  [`${customDomain}::CachedAttention`]: cachedAttention,
  [`${customDomain}::CausalConv`]: causalConv,
  [`${customDomain}::GatedMlp`]: gatedMlp,
  [`${customDomain}::MambaInner`]: mambaInner,
  [`${customDomain}::MoE`]: moe,
  [`${customDomain}::QuantizedLinear`]: quantizedLinear,
  [`${customDomain}::ResidualNorm`]: residualNorm,
  [`${customDomain}::SelectTokens`]: selectTokens,
  [`${customDomain}::SelectiveScan`]: selectiveScan,
};

/** Our ops on weights that only our kernels can read. */
export const packedOps: Readonly<Record<string, KernelOpDefinition>> = {
  [`${customDomain}::PackedLinear`]: packedLinear,
  [`${customDomain}::PackedMambaInner`]: packedMambaInner,
  [`${customDomain}::PackedMoE`]: packedMoe,
};

export function opDefinition(op: string): OpDefinition {
  const definition = customOps[op] ?? packedOps[op] ?? (standardOps as Readonly<Record<string, OpDefinition>>)[op];
  invariant(definition, `no op is called ${op}`);
  return definition;
}

/** The types of a node's outputs; broken arity, attributes or types are bugs of the lowering. */
export function inferNode(op: string, name: string, inputs: readonly (Value | null)[], attributes: Attributes): readonly Inferred[] {
  const definition = opDefinition(op);
  const [fewest, most] = definition.inputs;
  invariant(inputs.length >= fewest && inputs.length <= most, `${name}: ${op} with ${inputs.length} inputs`);
  for (const attribute of Object.keys(attributes)) invariant(attribute in definition.attributes, `${name}: ${op} has no attribute ${attribute}`);
  return definition.infer(new Inputs(`${name} (${op})`, inputs), attributes);
}
