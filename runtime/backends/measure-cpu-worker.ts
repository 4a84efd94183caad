import { isMainThread, parentPort, workerData } from "node:worker_threads";
import { create, toBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, TensorProto_DataType } from "onnx-buf";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { invariant } from "../../core/diagnostics.js";

/** What one thread measures over and over: copies between two arrays of so many bytes, or products of n × n matrices. */
export type Measurement = { readonly what: "copy"; readonly bytes: number } | { readonly what: "product"; readonly extent: number; readonly threads: number };

/** Milliseconds that one answer takes. */
const window = 200;

invariant(!isMainThread && parentPort, "the measuring worker was not started as a worker");
const port = parentPort;

function copier(bytes: number): () => Promise<number> {
  const [source, target] = [new Float64Array(bytes / 8).fill(1), new Float64Array(bytes / 8).fill(2)];
  return async () => {
    target.set(source);
    return 2 * bytes;
  };
}

async function multiplier(extent: number, threads: number): Promise<() => Promise<number>> {
  const shape = { dim: [extent, extent].map((n) => ({ value: { case: "dimValue" as const, value: BigInt(n) } })) };
  const matrix = (name: string) => ({ name, type: { value: { case: "tensorType" as const, value: { elemType: TensorProto_DataType.FLOAT, shape } } } });
  const graph = { name: "product", node: [{ input: ["a", "b"], output: ["c"], opType: "MatMul" }], input: [matrix("a"), matrix("b")], output: [matrix("c")] };
  const bytes = toBinary(ModelProtoSchema, create(ModelProtoSchema, { irVersion: 8n, opsetImport: [{ version: 17n }], graph }));
  const session = await InferenceSession.create(bytes, { intraOpNumThreads: threads, interOpNumThreads: 1, extra: { session: { intra_op: { allow_spinning: "0" } } } });
  const [a, b, c] = [0, 1, 2].map((seed) => new Tensor("float32", Float32Array.from({ length: extent * extent }, (_, i) => ((i * 7919 + seed) % 1000) / 1000), [extent, extent]));
  invariant(a && b && c, "three matrices");
  return async () => {
    await session.run({ a, b }, { c });
    return 2 * extent ** 3;
  };
}

const measured = workerData as Measurement;
const once = measured.what === "copy" ? copier(measured.bytes) : await multiplier(measured.extent, measured.threads);
await once();
port.on("message", async () => {
  const start = performance.now();
  let [done, elapsed] = [0, 0];
  while (elapsed < window) {
    done += await once();
    elapsed = performance.now() - start;
  }
  port.postMessage((done / elapsed) * 1000);
});
port.postMessage("ready");
