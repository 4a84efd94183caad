import { fromBinary } from "@bufbuild/protobuf";
import {
  type AttributeProto,
  AttributeProto_AttributeType as AttributeType,
  type FunctionProto,
  type GraphProto,
  ModelProtoSchema,
  type NodeProto,
  type TensorProto,
  TensorProto_DataLocation as DataLocation,
  TensorProto_DataType as DataType,
  type ValueInfoProto,
} from "onnx-buf";

/**
 * A model as text, after ONNX's textual syntax (github.com/onnx/onnx, docs/Syntax.md), from the bytes of a `.onnx`.
 * The version of the producer is left out: it changes without the model changing.
 */
export function onnxText(bytes: Uint8Array): string {
  const model = fromBinary(ModelProtoSchema, bytes);
  if (!model.graph) throw new Error("the model has no graph");
  return `${[
    "<",
    `  ir_version: ${model.irVersion},`,
    `  opset_import: [${model.opsetImport.map(({ domain, version }) => `"${domain}" : ${version}`).join(", ")}],`,
    `  producer_name: "${model.producerName}",`,
    `  metadata_props: [${model.metadataProps.map(({ key, value }) => `"${key}": "${value}"`).join(", ")}]`,
    ">",
    graphText(model.graph, ""),
    ...model.functions.map(functionText),
  ].join("\n")}\n`;
}

function graphText(graph: GraphProto, indent: string): string {
  const list = (values: readonly ValueInfoProto[]) => values.map((value) => `\n${indent}  ${valueText(value)}`).join(",");
  const initializers = graph.initializer.map((tensor) => `\n${indent}  ${tensorText(tensor, true)}`).join(",");
  return [
    `${indent}${graph.name} (${list(graph.input)}`,
    `${indent}) => (${list(graph.output)}`,
    `${indent})${initializers ? ` <${initializers}` : ""}`,
    `${indent}${initializers ? "> " : ""}{`,
    ...graph.node.map((node) => nodeText(node, `${indent}  `)),
    `${indent}}`,
  ].join("\n");
}

function functionText(f: FunctionProto): string {
  return [
    `<domain: "${f.domain}", overload: "${f.overload}", opset_import: [${f.opsetImport.map(({ domain, version }) => `"${domain}" : ${version}`).join(", ")}]>`,
    `${f.name} <${f.attribute.join(", ")}> (${f.input.join(", ")}) => (${f.output.join(", ")}) {`,
    ...f.node.map((node) => nodeText(node, "  ")),
    "}",
  ].join("\n");
}

function nodeText({ name, opType, domain, overload, input, output, attribute }: NodeProto, indent: string): string {
  const attributes = attribute.map((a) => attributeText(a, indent)).join(", ");
  const op = `${domain ? `${domain}.` : ""}${opType}${overload ? `:${overload}` : ""}`;
  const named = output.length === 1 && output[0] === name ? "" : `[${name}] `;
  return `${indent}${named}${output.join(", ")} = ${op}${attributes ? ` <${attributes}>` : ""} (${input.map((i) => i || '""').join(", ")})`;
}

function attributeText({ name, type, f, i, s, t, g, ints }: AttributeProto, indent: string): string {
  switch (type) {
    case AttributeType.FLOAT:
      return `${name} = ${floatText(f)}`;
    case AttributeType.INT:
      return `${name} = ${i}`;
    case AttributeType.STRING:
      return `${name} = "${Buffer.from(s).toString("utf8")}"`;
    case AttributeType.INTS:
      return `${name} = [${ints.join(", ")}]`;
    case AttributeType.TENSOR:
      if (t) return `${name} = ${tensorText(t, false)}`;
      break;
    case AttributeType.GRAPH:
      if (g) return `${name} =\n${graphText(g, `${indent}  `)}\n${indent}`;
      break;
  }
  throw new Error(`attribute ${name} of type ${type} is not printed`);
}

function valueText({ name, type }: ValueInfoProto): string {
  if (type?.value.case !== "tensorType") throw new Error(`${name} is no tensor`);
  const { elemType, shape } = type.value.value;
  const dims = shape?.dim.map(({ value }) => (value.case === undefined ? "?" : String(value.value))) ?? [];
  return `${dtypeText(elemType)}[${dims.join(", ")}] ${name}`;
}

const dtypeText = (dataType: number) => DataType[dataType]?.toLowerCase() ?? `type ${dataType}`;

const elementTexts: Readonly<Record<number, (buffer: ArrayBuffer) => string[]>> = {
  [DataType.INT64]: (buffer) => [...new BigInt64Array(buffer)].map(String),
  [DataType.FLOAT]: (buffer) => [...new Float32Array(buffer)].map(floatText),
  // By its bits, above those of a float32.
  [DataType.BFLOAT16]: (buffer) => [...new Float32Array(Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16).buffer)].map(floatText),
};

function tensorText({ name, dataType, dims, rawData, dataLocation, externalData }: TensorProto, named: boolean): string {
  const head = `${dtypeText(dataType)}[${dims.join(", ")}]${named ? ` ${name}` : ""}`;
  if (dataLocation === DataLocation.EXTERNAL) return `${head} = [${externalData.map(({ key, value }) => `"${key}": "${value}"`).join(", ")}]`;
  const { buffer } = Uint8Array.from(rawData);
  const elements = elementTexts[dataType]?.(buffer);
  if (!elements) throw new Error(`elements of ${name} are not printed`);
  return `${head}${named ? " =" : ""} {${elements.join(", ")}}`;
}

/** The shortest decimal that is this float32. */
function floatText(value: number): string {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return String(short);
  }
  return String(value);
}
