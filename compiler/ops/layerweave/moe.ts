import type { Value } from "../../ir/graph.js";
import type { GraphBuilder } from "../../ir/builder.js";
import { type CustomOpDefinition, int, type Inputs, text } from "../definition.js";
import { dequantized } from "./shared.js";

/**
 * Mixture of gated MLPs: each token goes to its top_k experts, y = Σ_e weight_e · down_e(silu(gate_e(x)) · up_e(x)).
 *
 * Router "softmax-then-top-k": p = softmax(x·routerᵀ) over all experts, the top_k largest p are the weights, divided by their
 * sum when `renormalise`. "top-k-then-softmax": a softmax over the top_k largest logits.
 * Expert weights are gate, up and down of each expert in turn, of x's type or bfloat16, or int8 with all of their scales after them
 * in the same order.
 * The body computes each expert only for the tokens that chose it.
 */
export const moe: CustomOpDefinition = {
  inputs: [5, Number.POSITIVE_INFINITY],
  inputNames: ["x", "router", "experts..."],
  outputNames: ["y"],
  attributes: { n_experts: "int", top_k: "int", router: "string", renormalise: "int" },
  infer: (inputs, attributes) => {
    const [x, router] = [inputs.at(0), inputs.at(1)]; // [M, D], [E, D]
    const experts = int(attributes, "n_experts");
    inputs.expect(router.shape[0] === experts && inputs.count === 2 + 3 * experts * (isInt8(inputs) ? 2 : 1), "a router row and gate, up and down weights per expert, with scales if they are int8");
    return [{ dtype: x.dtype, shape: x.shape }];
  },
  overload: (inputs, a) =>
    `e${int(a, "n_experts")}_k${int(a, "top_k")}_${text(a, "router", "")}${int(a, "renormalise") ? "_renormalised" : ""}_d${inputs.at(0).shape[1]}_f${inputs.at(2).shape[0]}${inputs.at(2).dtype === inputs.at(0).dtype ? "" : `_${inputs.at(2).dtype}`}`,
  body: (b, inputs, attributes) => {
    const x = inputs.at(0);
    const { weights, experts } = route(b, inputs, attributes);
    let y = b.op("ConstantOfShape", "zero", [b.op("Shape", "x_shape", [x])]); // [M, D]
    const nExperts = int(attributes, "n_experts");
    for (let e = 0; e < nExperts; e++) {
      const project: Projection = (b, name, x) => {
        const i = 3 * e + projections.indexOf(name);
        const weight = inputs.at(2 + i);
        if (isInt8(inputs)) return b.linear(name, x, dequantized(b, `${name}_weight`, weight, inputs.at(2 + 3 * nExperts + i), x));
        return b.linear(name, x, weight.dtype === x.dtype ? weight : b.op("Cast", `${name}_weight`, [weight], { to: x.dtype }));
      };
      y = b.scope(`experts.${e}`, () => addExpert(b, e, x, y, weights, experts, project));
    }
    return [y];
  },
};

const projections = ["gate_proj", "up_proj", "down_proj"] as const;

/** x [n, in] times one of an expert's weights → [n, out] */
type Projection = (b: GraphBuilder, name: (typeof projections)[number], x: Value) => Value;

const isInt8 = (inputs: Inputs) => inputs.at(2).dtype === "int8";

/** → weights [M, topK] float, experts [M, topK] int64 */
function route(b: GraphBuilder, inputs: Inputs, attributes: Parameters<CustomOpDefinition["body"]>[2]): { weights: Value; experts: Value } {
  const logits = b.linear("router_logits", inputs.at(0), inputs.at(1)); // [M, E]
  const k = b.ints(int(attributes, "top_k"));
  if (text(attributes, "router", "") === "top-k-then-softmax") {
    const [best, experts] = b.ops("TopK", "top_k", [logits, k], { axis: -1 }); // [M, topK] twice
    return { weights: b.op("Softmax", "weights", [best as Value], { axis: -1 }), experts: experts as Value };
  }
  const probabilities = b.op("Softmax", "probabilities", [logits], { axis: -1 }); // [M, E]
  const [best, experts] = b.ops("TopK", "top_k", [probabilities, k], { axis: -1 }); // [M, topK] twice
  if (!int(attributes, "renormalise")) return { weights: best as Value, experts: experts as Value };
  const sum = b.op("ReduceSum", "weight_sum", [best as Value, b.ints(-1)], { keepdims: 1 }); // [M, 1]
  return { weights: b.op("Div", "weights", [best as Value, sum]), experts: experts as Value };
}

/** y + the expert's share for the n tokens that chose it → [M, D] */
function addExpert(b: GraphBuilder, e: number, x: Value, y: Value, weights: Value, experts: Value, project: Projection): Value {
  const hits = b.op("NonZero", "hits", [b.op("Equal", "chosen", [experts, b.scalar("int64", e)])]); // [2, n]
  const tokens = b.op("Gather", "tokens", [hits, b.scalar("int64", 0)], { axis: 0 }); // [n]
  const weight = b.op("GatherND", "weight", [weights, b.op("Transpose", "hit_pairs", [hits], { perm: [1, 0] })], { batch_dims: 0 }); // [n]
  const rows = b.op("Gather", "rows", [x, tokens], { axis: 0 }); // [n, D]
  const hidden = b.op("Mul", "hidden", [b.silu("gate", project(b, "gate_proj", rows)), project(b, "up_proj", rows)]); // [n, F]
  const out = project(b, "down_proj", hidden); // [n, D]
  const share = b.op("Mul", "share", [out, b.op("Unsqueeze", "weight_column", [weight, b.ints(1)])]); // [n, D]
  return b.op("ScatterND", "sum", [y, b.op("Unsqueeze", "token_column", [tokens, b.ints(1)]), share], { reduction: "add" }); // [M, D]
}
