import { join } from "node:path";
import { LayerweaveError, diagnostic, fail, invariant, type Diagnostic } from "../../core/diagnostics.js";
import type { Manifest, StateSlot } from "../../core/manifest.js";
import { runtimeDiagnostics } from "../diagnostics.js";
import type { Backend, BackendSession, DeviceRates, DeviceSampling, ForwardRequest, OpenRequest, SessionMemory, SlotContent, StateId, StepTimes } from "./backend.js";
import { measureCpu } from "./measure-cpu.js";
import type { AddonSession, AddonSessionOptions, AddonWeight, NativeRuntime } from "./native-addon.js";
import { originInMessage } from "./portable.js";

/** [B] as the graph takes it. */
const int64 = (values: readonly number[]): BigInt64Array => BigInt64Array.from(values, BigInt);

/** How allocators of C++, of ONNX Runtime and of CUDA say that there is no memory, and a thread that there is none for its stack. */
const noMemory = /bad_alloc|[Ff]ailed to allocate memory|no memory for|Resource temporarily unavailable|CUBLAS_STATUS_ALLOC_FAILED|CUDA failure 2:/;

/** Largest vocabulary that the kernel chooses from: kSampleMaxVocabulary of kernels/include/sample.cuh. */
const mostSampled = 2 ** 18;

/** kNoToken of decode_steps.h: in place of a token, of a row that took no part. */
const noToken = -2n;

/** Whose memory a session uses. */
type Owner = "system" | "card";

/** Runs `work`; what the addon says when it fails becomes a diagnostic. */
async function described<Value>(owner: Owner, doing: string, work: () => Promise<Value>, describe: (problem: string) => Diagnostic): Promise<Value> {
  try {
    return await work();
  } catch (error) {
    const problem = error instanceof Error ? error.message.trim() : String(error);
    if (owner === "card" && problem.endsWith("context is lost")) throw new LayerweaveError([diagnostic(runtimeDiagnostics["card-lost"], { problem })]);
    throw new LayerweaveError([noMemory.test(problem) ? diagnostic(runtimeDiagnostics["out-of-memory"], { owner, doing, problem }) : describe(problem)]);
  }
}

class NativeSession implements BackendSession {
  #closing: Promise<void> | undefined;
  #logitsPeak = 0;
  readonly sampling: DeviceSampling | undefined;

  constructor(
    private readonly session: AddonSession,
    private readonly origins: Manifest["origins"],
    private readonly owner: Owner,
    private readonly threads: number,
    vocabSize: number,
  ) {
    if (owner === "card" && vocabSize <= mostSampled)
      this.sampling = {
        create: (rows) => this.#run("hold a sampler", () => session.createSampler(rows)),
        // Fails only when the session is closed, and the sampler gone with it.
        release: (sampler) => void this.#run("hold a sampler", () => session.releaseSampler(sampler)).catch(() => undefined),
        forward: async ({ state, inputIds, pastLengths, lengths, logitIndices }, sampler, chosen) =>
          Array.from(
            await this.#run("run the model", () => session.forwardSampled(state, inputIds, int64(pastLengths), int64(lengths), logitIndices, sampler, Uint8Array.from(chosen, Number))),
            Number,
          ),
        decode: ({ state, inputIds, pastLengths, limits, stopTokenIds }, sampler, onTokens) => {
          const told = (tokens: BigInt64Array): void => onTokens(Array.from(tokens, (token) => (token === noToken ? undefined : Number(token))));
          const decoding = session.decode(state, int64(inputIds), int64(pastLengths), int64(limits), int64(stopTokenIds), sampler, told);
          return { done: this.#run("run the model", () => decoding.done), stop: () => decoding.stop() };
        },
      };
  }

  lendLogits(count: number): Promise<Float32Array> {
    return this.#run("hold logits", async () => (this.owner === "card" ? this.session.pinnedLogits(count) : new Float32Array(count)));
  }

  createState(batch: number, capacity: number): Promise<StateId> {
    return this.#ofState(() => this.session.createState(batch, capacity));
  }

  copyState(state: StateId): Promise<StateId> {
    return this.#ofState(() => this.session.copyState(state));
  }

  releaseState(state: StateId): void {
    // Fails only when the session is closed, and the state gone with it.
    this.#ofState(() => this.session.releaseState(state)).catch(() => undefined);
  }

  async forward({ state, inputIds, pastLengths, lengths, logitIndices }: ForwardRequest, into?: Float32Array): Promise<Float32Array> {
    const run = async (): Promise<Float32Array> =>
      into === undefined
        ? this.session.forward(state, inputIds, int64(pastLengths), int64(lengths), logitIndices)
        : into.subarray(0, await this.session.forwardInto(state, inputIds, int64(pastLengths), int64(lengths), logitIndices, into));
    const logits = await this.#run("run the model", run);
    this.#logitsPeak = Math.max(this.#logitsPeak, logits.byteLength);
    return logits;
  }

  readState(state: StateId, slot: number, positions?: number): Promise<SlotContent> {
    return this.#ofState(() => this.session.readState(state, slot, positions));
  }

  async readBytes(state: StateId, slot: number, lengths: readonly number[], from: number, count: number): Promise<Uint8Array> {
    const into = Buffer.allocUnsafeSlow(count);
    await this.#ofState(() => this.session.readBytes(state, slot, int64(lengths), from, into));
    return into;
  }

  writeBytes(state: StateId, slot: number, lengths: readonly number[], from: number, bytes: Uint8Array): Promise<void> {
    // The array is held until then.
    return this.#ofState(() => this.session.writeBytes(state, slot, int64(lengths), from, bytes).then(() => void bytes));
  }

  copyRow(from: StateId, fromRow: number, tokens: number, to: StateId, toRow: number): Promise<void> {
    return this.#ofState(() => this.session.copyRow(from, fromRow, tokens, to, toRow));
  }

  async memory(): Promise<SessionMemory> {
    return { ...(await this.session.memory()), logitsPeak: this.#logitsPeak };
  }

  async stepTimes(state: StateId): Promise<StepTimes | null> {
    return this.owner === "card" ? this.#ofState(() => this.session.stepTimes(state)) : null;
  }

  measureDevice(): Promise<DeviceRates> {
    if (this.owner === "system") return measureCpu(this.threads);
    return described(this.owner, "measure the card", () => this.session.measureDevice(), (problem) => diagnostic(runtimeDiagnostics["run-failed"], { problem }));
  }

  close(): Promise<void> {
    this.#closing ??= this.session.close();
    return this.#closing;
  }

  #run<Value>(doing: string, work: () => Promise<Value>): Promise<Value> {
    return described(this.owner, doing, work, (problem) => diagnostic(runtimeDiagnostics["run-failed"], { problem }, originInMessage(problem, this.origins)));
  }

  #ofState<Value>(work: () => Promise<Value>): Promise<Value> {
    return described(this.owner, "hold the state", work, (problem) => diagnostic(runtimeDiagnostics["state-failed"], { problem }));
  }
}

function slotOptions({ past, present, dtype, shape, update, rewind }: StateSlot): AddonSessionOptions["state"][number] {
  return {
    past,
    present,
    dtype,
    shape: shape.map((dim) => {
      invariant(dim !== "T" && dim !== "L", `state is not shaped by ${dim}`);
      return dim;
    }),
    // What a run writes into a KV cache lies beyond the positions that count. Recurrent state overwritten in place would
    // be lost with a run that fails or is interrupted halfway, so it has two buffers, which change roles when a run succeeds.
    inPlace: update === "in-place" && rewind === "trim",
  };
}

/** A model's weights in the order they lie in: disks and the system read ahead. */
export function weightsInOrder(folder: string, manifest: Manifest): AddonWeight[] {
  return [...manifest.weights]
    .sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : a.offset - b.offset))
    .map(({ name, file, offset, bytes, dtype, shape }) => ({ name, file: join(folder, file), offset, bytes, dtype, shape }));
}

/** Opens a session of the addon: on the CPU, or with `cuda` on a card. */
export async function openSession(
  { addon, library }: NativeRuntime,
  kernels: string,
  { folder, manifest, threads, mappedWeights, onProgress }: OpenRequest,
  cuda?: AddonSessionOptions["cuda"],
): Promise<BackendSession> {
  const { graph, inputs, outputs, model } = manifest;
  const options: AddonSessionOptions = {
    library,
    graph: join(folder, graph.file),
    kernels,
    threads,
    vocabSize: model.vocabSize,
    contextLength: model.contextLength ?? 0,
    inputIds: inputs.inputIds.name,
    pastLengths: inputs.pastLengths.name,
    lengths: inputs.lengths.name,
    logitIndices: inputs.logitIndices.name,
    logits: outputs.logits.name,
    state: manifest.state.map(slotOptions),
    // Our kernels read int8 weights as they are stored; what ONNX Runtime widens or packs it copies itself.
    copied: cuda || kernels === "" || mappedWeights ? [] : weightsInOrder(folder, manifest).filter(({ dtype }) => dtype === "int8"),
    ...(cuda ? { cuda } : {}),
    ...(onProgress ? { onProgress } : {}),
  };
  const owner = cuda ? "card" : "system";
  const session = await described(
    owner,
    "load the model",
    () => addon.openSession(options),
    (problem) => diagnostic(runtimeDiagnostics["load-failed"], { folder, problem }, originInMessage(problem, manifest.origins)),
  );
  return new NativeSession(session, manifest.origins, owner, threads, model.vocabSize);
}

/** Our addon over ONNX Runtime's C API, on the CPU. A thread of its own runs each session, so the one that asks stays free. */
export function nativeBackend(native: NativeRuntime): Backend {
  return {
    name: "native",
    async open(request) {
      const unsupported = request.manifest.state.find((slot) => slot.dtype !== "float32");
      if (unsupported) fail(runtimeDiagnostics["unsupported-state"], { slot: unsupported.past, dtype: unsupported.dtype, backend: "native" });
      return openSession(native, "path" in native.kernels ? native.kernels.path : "", request);
    },
  };
}
