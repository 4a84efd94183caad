import { create, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { ModelProtoSchema } from "onnx-buf";
import protobuf from "protobufjs";
import descriptor from "protobufjs/ext/descriptor.js";
import type { Dtype } from "../../core/dtype.js";

// onnx-buf carries ONNX's current schema (IR 13) as a descriptor; protobufjs encodes with it.
const descriptors = toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: [ModelProtoSchema.file.proto] }));
const root = (protobuf.Root as typeof protobuf.Root & { fromDescriptor(set: protobuf.Message): protobuf.Root }).fromDescriptor(
  descriptor.FileDescriptorSet.decode(descriptors),
);

export const modelProto = root.lookupType("onnx.ModelProto");

/** TensorProto.DataType */
export const onnxDtype: Readonly<Record<Dtype, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  bfloat16: 16,
};
