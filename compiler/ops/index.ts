import { invariant } from "../../core/diagnostics.js";
import type { Attributes, Value } from "../ir/graph.js";
import { type CustomOpDefinition, type Inferred, Inputs, type OpDefinition } from "./definition.js";
import { cachedAttention } from "./layerweave/cached-attention.js";
import { causalConv } from "./layerweave/causal-conv.js";
import { moe } from "./layerweave/moe.js";
import { quantizedLinear } from "./layerweave/quantized-linear.js";
import { selectiveScan } from "./layerweave/selective-scan.js";
import { standardOps } from "./standard.js";

export const customDomain = "ai.layerweave";
export const customDomainVersion = 1;

/** Our ops. A new one adds a line. */
export const customOps: Readonly<Record<string, CustomOpDefinition>> = {
  [`${customDomain}::CachedAttention`]: cachedAttention,
  [`${customDomain}::CausalConv`]: causalConv,
  [`${customDomain}::MoE`]: moe,
  [`${customDomain}::QuantizedLinear`]: quantizedLinear,
  [`${customDomain}::SelectiveScan`]: selectiveScan,
};

export function opDefinition(op: string): OpDefinition {
  const definition = customOps[op] ?? (standardOps as Readonly<Record<string, OpDefinition>>)[op];
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
