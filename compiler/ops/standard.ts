import { invariant } from "../../core/diagnostics.js";
import { addDims, type Dim, divideDims, elementCount, mulDims, type Shape, sameShape, subDims } from "../../core/dim.js";
import type { Dtype } from "../../core/dtype.js";
import type { Graph } from "../ir/graph.js";
import { type AttributeType, int, ints, type Inferred, type Inputs, type OpDefinition, text } from "./definition.js";

// Type rules of the ONNX operators the lowering uses (opset 24: https://onnx.ai/onnx/operators/).

type Rule = OpDefinition["infer"];
const op = (inputs: number | readonly [number, number], infer: Rule, attributes: Readonly<Record<string, AttributeType>> = {}): OpDefinition => ({
  inputs: typeof inputs === "number" ? [inputs, inputs] : inputs,
  attributes,
  infer,
});

const axisOf = (axis: number, rank: number) => (axis < 0 ? axis + rank : axis);
const at = (shape: Shape, axis: number): Dim => {
  const dim = shape[axisOf(axis, shape.length)];
  invariant(dim !== undefined, `no axis ${axis} in a tensor of rank ${shape.length}`);
  return dim;
};
const replace = (shape: Shape, axis: number, dim: Dim): Shape => shape.map((d, i) => (i === axisOf(axis, shape.length) ? dim : d));

function broadcast(inputs: Inputs, ...shapes: readonly Shape[]): Shape {
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, i) => {
    const dims = shapes.map((s) => s[i - rank + s.length] ?? 1).filter((d) => d !== 1);
    inputs.expect(dims.every((d) => d === dims[0]), "shapes do not broadcast");
    return dims[0] ?? 1;
  });
}

const unary = op(1, (inputs) => [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape }]);
const binary = op(2, (inputs) => {
  const [a, b] = [inputs.at(0), inputs.at(1)];
  inputs.expect(a.dtype === b.dtype, "element types differ");
  return [{ dtype: a.dtype, shape: broadcast(inputs, a.shape, b.shape) }];
});
const compare = op(2, (inputs) => {
  const [a, b] = [inputs.at(0), inputs.at(1)];
  inputs.expect(a.dtype === b.dtype, "element types differ");
  return [{ dtype: "bool", shape: broadcast(inputs, a.shape, b.shape) }];
});

/** The number a data-dependent extent is called by; unique per producer. */
const unknownExtent = (producer: string): Dim => `n(${producer})`;

function reshape(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const [x, target] = [inputs.at(0), inputs.at(1)];
  inputs.expect(target.content !== undefined, "the target shape is unknown");
  const dims = (target.content ?? []).map((d, i) => (d === 0 && !int(attributes, "allowzero", 0) ? at(x.shape, i) : d));
  const known = mulDims(...dims.filter((d) => d !== -1));
  const whole = dims.includes(-1) ? divideDims(elementCount(x.shape), known) : undefined;
  inputs.expect(!dims.includes(-1) || whole !== undefined, "the open extent does not come out");
  const shape = dims.map((d) => (d === -1 ? (whole as Dim) : d));
  inputs.expect(elementCount(shape) === elementCount(x.shape), "the number of elements changes");
  return [{ dtype: x.dtype, shape }];
}

function concat(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const values = inputs.rest(0);
  const first = inputs.at(0);
  const axis = axisOf(int(attributes, "axis"), first.shape.length);
  inputs.expect(
    values.every((v) => v.dtype === first.dtype && sameShape(replace(v.shape, axis, 0), replace(first.shape, axis, 0))),
    "only the concatenated axis may differ",
  );
  const shape = replace(first.shape, axis, values.map((v) => at(v.shape, axis)).reduce(addDims));
  const contents = values.map((v) => v.content);
  return [{ dtype: first.dtype, shape, ...(contents.every((c) => c !== undefined) ? { content: contents.flat() as Dim[] } : {}) }];
}

function gather(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const [x, indices] = [inputs.at(0), inputs.at(1)];
  const axis = axisOf(int(attributes, "axis", 0), x.shape.length);
  const picked = x.content && indices.constant?.map((i) => x.content?.[i]);
  return [
    {
      dtype: x.dtype,
      shape: [...x.shape.slice(0, axis), ...indices.shape, ...x.shape.slice(axis + 1)],
      ...(picked?.every((d) => d !== undefined) ? { content: picked as Dim[] } : {}),
    },
  ];
}

function slice(inputs: Inputs): readonly Inferred[] {
  const x = inputs.at(0);
  const [starts, ends, axes] = [inputs.ints(1), inputs.ints(2), inputs.ints(3)];
  let shape = x.shape;
  axes.forEach((axis, i) => {
    const extent = at(x.shape, axis);
    const from = starts[i] as number;
    const to = ends[i] as number;
    inputs.expect(from >= 0 && (to >= 0 || typeof extent === "number"), "only slices from the front are inferred");
    const end: Dim = typeof extent === "number" ? Math.min(to < 0 ? extent + to : to, extent) : to >= 2 ** 31 ? extent : to;
    shape = replace(shape, axis, subDims(end, from));
  });
  return [{ dtype: x.dtype, shape }];
}

function matMul(inputs: Inputs): readonly Inferred[] {
  const [a, b] = [inputs.at(0), inputs.at(1)];
  inputs.expect(a.dtype === b.dtype && at(a.shape, -1) === at(b.shape, -2), "inner extents differ");
  return [{ dtype: a.dtype, shape: [...broadcast(inputs, a.shape.slice(0, -2), b.shape.slice(0, -2)), at(a.shape, -2), at(b.shape, -1)] }];
}

function gemm(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const [a, b, c] = [inputs.at(0), inputs.at(1), inputs.optional(2)];
  const transposed = int(attributes, "transB", 0) === 1;
  const [inner, out] = transposed ? [at(b.shape, 1), at(b.shape, 0)] : [at(b.shape, 0), at(b.shape, 1)];
  inputs.expect(a.shape.length === 2 && a.dtype === b.dtype && at(a.shape, 1) === inner, "inner extents differ");
  inputs.expect(!c || sameShape(c.shape, [out]), "the bias is as long as the output is wide");
  return [{ dtype: a.dtype, shape: [at(a.shape, 0), out] }];
}

function conv(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const [x, w] = [inputs.at(0), inputs.at(1)]; // [B, I, T + K - 1], [I, 1, K]
  inputs.expect(x.shape.length === 3 && at(x.shape, 1) === at(w.shape, 0) && int(attributes, "group") === at(w.shape, 0), "a depthwise convolution");
  return [{ dtype: x.dtype, shape: replace(x.shape, 2, addDims(subDims(at(x.shape, 2), at(w.shape, 2)), 1)) }];
}

function scan(inputs: Inputs, attributes: Parameters<Rule>[1]): readonly Inferred[] {
  const body = attributes.body as Graph;
  const scanned = int(attributes, "num_scan_inputs");
  const states = inputs.count - scanned;
  const length = at(inputs.at(states).shape, ints(attributes, "scan_input_axes")[0] as number);
  const axes = ints(attributes, "scan_output_axes");
  return body.outputs.map((value, i) => {
    if (i < states) {
      inputs.expect(sameShape(value.shape, inputs.at(i).shape), `state ${i} changes its shape`);
      return { dtype: value.dtype, shape: value.shape };
    }
    const axis = axes[i - states] as number;
    return { dtype: value.dtype, shape: [...value.shape.slice(0, axis), length, ...value.shape.slice(axis)] };
  });
}

function attention(inputs: Inputs): readonly Inferred[] {
  const [q, k, v] = [inputs.at(0), inputs.at(1), inputs.at(2)]; // [B, H, T, P], [B, G, S, P], [B, G, S, P]
  inputs.expect(q.shape.length === 4 && at(q.shape, 3) === at(k.shape, 3) && at(k.shape, 2) === at(v.shape, 2), "4-d queries, keys and values");
  return [{ dtype: q.dtype, shape: replace(q.shape, 3, at(v.shape, 3)) }];
}

function normalization(inputs: Inputs): readonly Inferred[] {
  inputs.expect(sameShape(inputs.at(1).shape, [at(inputs.at(0).shape, -1)]), "the scale is as long as the last axis");
  return [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape }];
}

export const standardOps = {
  Add: binary,
  Sub: binary,
  Mul: binary,
  Div: binary,
  And: compare,
  Less: compare,
  LessOrEqual: compare,
  Greater: compare,
  Equal: compare,
  Neg: unary,
  Exp: unary,
  Sigmoid: unary,
  Softplus: unary,
  Cos: unary,
  Sin: unary,
  Softmax: { ...unary, attributes: { axis: "int" } },
  Cast: op(1, (inputs, a) => [{ dtype: text(a, "to", "") as Dtype, shape: inputs.at(0).shape }], { to: "string" }),
  Shape: op(1, (inputs) => [{ dtype: "int64", shape: [inputs.at(0).shape.length], content: inputs.at(0).shape }]),
  ConstantOfShape: op(1, (inputs) => {
    inputs.expect(inputs.at(0).content !== undefined, "the shape is unknown");
    return [{ dtype: "float32", shape: inputs.at(0).content ?? [] }];
  }),
  Range: op(3, (inputs) => {
    const [start, limit] = [inputs.at(0), inputs.at(1)];
    inputs.expect(start.constant?.[0] === 0 && limit.content?.length === 1, "a range from 0 to a known extent");
    return [{ dtype: limit.dtype, shape: limit.content ?? [] }];
  }),
  Reshape: op(2, reshape, { allowzero: "int" }),
  Expand: op(2, (inputs) => {
    inputs.expect(inputs.at(1).content !== undefined, "the target shape is unknown");
    return [{ dtype: inputs.at(0).dtype, shape: broadcast(inputs, inputs.at(0).shape, inputs.at(1).content ?? []) }];
  }),
  Concat: op([1, Number.POSITIVE_INFINITY], concat, { axis: "int" }),
  Gather: op(2, gather, { axis: "int" }),
  Slice: op(4, slice),
  Split: op(2, (inputs, a) => inputs.ints(1).map((length) => ({ dtype: inputs.at(0).dtype, shape: replace(inputs.at(0).shape, int(a, "axis"), length) })), { axis: "int" }),
  Unsqueeze: op(2, (inputs) => {
    let shape = inputs.at(0).shape;
    for (const axis of [...inputs.ints(1)].map((a) => axisOf(a, shape.length + inputs.ints(1).length)).sort((a, b) => a - b)) shape = [...shape.slice(0, axis), 1, ...shape.slice(axis)];
    return [{ dtype: inputs.at(0).dtype, shape }];
  }),
  Squeeze: op(2, (inputs) => {
    const axes = inputs.ints(1).map((a) => axisOf(a, inputs.at(0).shape.length));
    inputs.expect(axes.every((a) => inputs.at(0).shape[a] === 1), "only axes of extent 1 are squeezed");
    return [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape.filter((_, i) => !axes.includes(i)) }];
  }),
  Transpose: op(1, (inputs, a) => [{ dtype: inputs.at(0).dtype, shape: ints(a, "perm").map((axis) => at(inputs.at(0).shape, axis)) }], { perm: "ints" }),
  ReduceSum: op(2, (inputs, a) => {
    inputs.expect(int(a, "keepdims", 1) === 1, "reduced axes are kept");
    return [{ dtype: inputs.at(0).dtype, shape: inputs.ints(1).reduce((shape: Shape, axis) => replace(shape, axis, 1), inputs.at(0).shape) }];
  }, { keepdims: "int" }),
  TopK: op(2, (inputs, a) => {
    const shape = replace(inputs.at(0).shape, int(a, "axis"), inputs.ints(1)[0] as number);
    return [{ dtype: inputs.at(0).dtype, shape }, { dtype: "int64", shape }];
  }, { axis: "int" }),
  NonZero: op(1, (inputs) => [{ dtype: "int64", shape: [inputs.at(0).shape.length, unknownExtent(inputs.at(0).name)] }]),
  GatherElements: op(2, (inputs) => [{ dtype: inputs.at(0).dtype, shape: inputs.at(1).shape }], { axis: "int" }),
  GatherND: op(2, (inputs, a) => {
    const [x, indices] = [inputs.at(0), inputs.at(1)];
    const batch = int(a, "batch_dims", 0);
    return [{ dtype: x.dtype, shape: [...indices.shape.slice(0, -1), ...x.shape.slice(batch + Number(at(indices.shape, -1)))] }];
  }, { batch_dims: "int" }),
  ScatterND: op(3, (inputs) => [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape }], { reduction: "string" }),
  TensorScatter: op(3, (inputs) => [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape }], { axis: "int" }),
  MatMul: op(2, matMul),
  Gemm: op([2, 3], gemm, { transB: "int" }),
  Conv: op([2, 3], conv, { group: "int" }),
  DequantizeLinear: op(2, (inputs, a) => {
    const [x, scale] = [inputs.at(0), inputs.at(1)];
    inputs.expect(x.dtype === "int8" && sameShape(scale.shape, [at(x.shape, int(a, "axis"))]), "int8 elements, and a scale for each index of the axis");
    return [{ dtype: scale.dtype, shape: x.shape }];
  }, { axis: "int" }),
  RMSNormalization: op(2, normalization, { axis: "int", epsilon: "float" }),
  // ONNX Runtime's own, of its default domain (onnxruntime/core/graph/contrib_ops).
  SimplifiedLayerNormalization: op(2, normalization, { axis: "int", epsilon: "float" }),
  RotaryEmbedding: op(3, (inputs) => [{ dtype: inputs.at(0).dtype, shape: inputs.at(0).shape }], { num_heads: "int" }),
  Attention: op([3, 4], attention, { scale: "float" }),
  Scan: op([1, Number.POSITIVE_INFINITY], scan, { body: "graph", num_scan_inputs: "int", scan_input_axes: "ints", scan_output_axes: "ints" }),
} as const satisfies Readonly<Record<string, OpDefinition>>;
