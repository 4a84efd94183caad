import { invariant } from "../../core/diagnostics.js";
import { bytesPerElement, type Dtype, storageDtypes } from "../../core/dtype.js";
import type { Attribute, FunctionBody, Graph, Module, Node, Value } from "../ir/graph.js";
import { customDomain, customDomainVersion, opDefinition } from "../ops/index.js";
import type { AttributeType } from "../ops/definition.js";
import type { Target } from "../targets/target.js";
import { convertElements } from "../weights/convert.js";
import { modelProto, onnxDtype } from "./schema.js";

/** Where a weight's bytes lie: a file beside the model, and a range of it. */
export interface Placement {
  readonly file: string;
  readonly offset: number;
  readonly bytes: number;
}

export interface EncodeOptions {
  readonly target: Target;
  readonly producer: { readonly name: string; readonly version: string };
  readonly placement: (weight: string) => Placement;
  readonly metadata: Readonly<Record<string, string>>;
}

/** A module as an ONNX ModelProto. Weights are external data; constants are inside. */
export function encodeOnnx(module: Module, { target, producer, placement, metadata }: EncodeOptions): Uint8Array {
  const opsets = [
    { domain: "", version: target.opset },
    { domain: customDomain, version: customDomainVersion },
  ];
  const graph = graphProto(module.graph);
  graph.initializer.push(
    ...module.graph.weights.map(({ value }) => {
      const { file, offset, bytes } = placement(value.name);
      const entry = (key: string, v: string | number) => ({ key, value: String(v) });
      return { name: value.name, dataType: onnxDtype[value.dtype], dims: value.shape, dataLocation: 1, externalData: [entry("location", file), entry("offset", offset), entry("length", bytes)] };
    }),
  );
  const message = {
    irVersion: target.irVersion,
    opsetImport: opsets,
    producerName: producer.name,
    producerVersion: producer.version,
    graph,
    functions: module.functions.map((f) => functionProto(f, opsets)),
    metadataProps: Object.entries(metadata).map(([key, value]) => ({ key, value })),
  };
  return modelProto.encode(modelProto.fromObject(message)).finish();
}

function graphProto(graph: Graph): { readonly initializer: object[]; readonly [field: string]: unknown } {
  return {
    name: graph.name,
    input: graph.inputs.map(valueInfo),
    output: graph.outputs.map(valueInfo),
    initializer: constantsOf(graph).map((value) => ({ name: value.name, ...tensorProto(value) })) ,
    node: graph.nodes.map(nodeProto),
  };
}

/** Functions have no initializers: their constants are nodes. */
function functionProto({ op, overload, inputNames, attributeNames, body }: FunctionBody, opsetImport: object[]) {
  const [domain, name] = op.split("::");
  return {
    name,
    domain,
    overload,
    input: inputNames,
    output: body.outputs.map((value) => value.name),
    attribute: attributeNames,
    opsetImport,
    node: [
      ...constantsOf(body).map((value) => ({ opType: "Constant", name: value.name, output: [value.name], attribute: [{ name: "value", type: attributeCode.tensor, t: tensorProto(value) }] })),
      ...body.nodes.map(nodeProto),
    ],
  };
}

function constantsOf(graph: Graph): Value[] {
  const constants = new Map<string, Value>();
  for (const node of graph.nodes) for (const input of node.inputs) if (input?.constant) constants.set(input.name, input);
  return [...constants.values()];
}

function nodeProto(node: Node): object {
  const [domain, name] = node.op.includes("::") ? node.op.split("::") : ["", node.op];
  const definition = opDefinition(node.op);
  return {
    opType: name,
    domain,
    ...(node.overload === undefined ? {} : { overload: node.overload }),
    name: node.name,
    input: node.inputs.map((value) => value?.name ?? ""),
    output: node.outputs.map((value) => value.name),
    attribute: Object.entries(node.attributes).map(([key, value]) => attributeProto(key, value, definition.attributes[key] as AttributeType)),
  };
}

/** AttributeProto.AttributeType */
const attributeCode = { float: 1, int: 2, string: 3, tensor: 4, graph: 5, ints: 7 } as const;

function attributeProto(name: string, value: Attribute, type: AttributeType): object {
  const code = { name, type: attributeCode[type] };
  switch (type) {
    case "float":
      return { ...code, f: value };
    case "int":
      return { ...code, i: value };
    case "ints":
      return { ...code, ints: value };
    case "graph":
      return { ...code, g: graphProto(value as Graph) };
    case "string":
      // Cast names its type in the IR and numbers it in ONNX.
      return name === "to" ? { name, type: attributeCode.int, i: onnxDtype[value as Dtype] } : { ...code, s: Buffer.from(value as string) };
  }
}

function valueInfo({ name, dtype, shape }: Value) {
  return { name, type: { tensorType: { elemType: onnxDtype[dtype], shape: { dim: shape.map((d) => (typeof d === "number" ? { dimValue: d } : { dimParam: d })) } } } };
}

function tensorProto({ dtype, shape, constant }: Value) {
  invariant(constant, "a constant without elements");
  return { dataType: onnxDtype[dtype], dims: shape, rawData: dtype === "int64" ? Buffer.from(BigInt64Array.from(constant, BigInt).buffer) : floatBytes(constant, dtype) };
}

function floatBytes(elements: readonly number[], dtype: Dtype): Uint8Array {
  const storage = storageDtypes.find((d) => d === dtype);
  invariant(storage, `constants of type ${dtype} are not written`);
  const bytes = new Uint8Array(elements.length * bytesPerElement[storage]);
  convertElements({ dtype: "float32", bytes: new Uint8Array(new Float32Array(elements).buffer) }, storage, bytes);
  return bytes;
}
