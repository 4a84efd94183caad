import { join } from "node:path";
import { LayerweaveError, diagnostic, fail, type Diagnostic } from "../../core/diagnostics.js";
import type { Manifest } from "../../core/manifest.js";
import type { Origin } from "../../core/origin.js";
import { runtimeDiagnostics } from "../diagnostics.js";
import type { Backend, BackendSession, DeviceRates, ForwardRequest, OpenRequest, SlotContent, StateId } from "./backend.js";
import { measureCpu } from "./measure-cpu.js";
import type { PortableModel, PortableRequest } from "./portable-worker.js";
import { WorkerChannel, WorkerProblem } from "./worker-channel.js";

/**
 * Where the node that an ONNX Runtime message names was lowered from. Messages wrap names in prose that differs per
 * error, so the longest known name that stands alone in the message is taken.
 */
export function originInMessage(message: string, origins: Manifest["origins"]): Origin | undefined {
  const [name] = Object.keys(origins)
    .filter((candidate) => {
      const at = message.indexOf(candidate);
      return at >= 0 && !/[\w/.]/.test(message.charAt(at + candidate.length));
    })
    .sort((a, b) => b.length - a.length);
  const origin = name === undefined ? undefined : origins[name];
  return origin && { path: origin.path, ...(origin.at && { at: origin.at }) };
}

class PortableSession implements BackendSession {
  #closing: Promise<void> | undefined;

  constructor(
    private readonly channel: WorkerChannel<PortableRequest, PortableModel>,
    private readonly origins: Manifest["origins"],
    private readonly threads: number,
  ) {}

  createState(batch: number, capacity: number): Promise<StateId> {
    return this.channel.call({ kind: "create", batch, capacity });
  }

  copyState(state: StateId): Promise<StateId> {
    return this.channel.call({ kind: "copy", state });
  }

  releaseState(state: StateId): void {
    // Fails only when the thread is gone, and the state with it.
    this.channel.call({ kind: "release", state }).catch(() => undefined);
  }

  async forward({ state, inputIds, pastLengths, lengths, logitIndices }: ForwardRequest): Promise<Float32Array> {
    return this.#described((problem) => diagnostic(runtimeDiagnostics["run-failed"], { problem }, originInMessage(problem, this.origins)), {
      kind: "forward",
      state,
      inputIds,
      pastLengths,
      lengths,
      logitIndices,
    });
  }

  readState(state: StateId, slot: number): Promise<SlotContent> {
    return this.channel.call({ kind: "read", state, slot });
  }

  readBytes(state: StateId, slot: number, lengths: readonly number[], from: number, count: number): Promise<Uint8Array> {
    return this.channel.call({ kind: "read-bytes", state, slot, lengths, from, count });
  }

  writeBytes(state: StateId, slot: number, lengths: readonly number[], from: number, bytes: Uint8Array): Promise<void> {
    return this.channel.call({ kind: "write-bytes", state, slot, lengths, from, bytes });
  }

  copyRow(from: StateId, fromRow: number, tokens: number, to: StateId, toRow: number): Promise<void> {
    return this.channel.call({ kind: "copy-row", state: from, fromRow, tokens, to, toRow });
  }

  // onnxruntime-node has no way to ask its allocator.
  async memory(): Promise<null> {
    return null;
  }

  async stepTimes(): Promise<null> {
    return null;
  }

  measureDevice(): Promise<DeviceRates> {
    return measureCpu(this.threads);
  }

  close(): Promise<void> {
    this.#closing ??= this.channel.call({ kind: "close" }).then(
      () => this.channel.ended(),
      () => this.channel.ended(),
    );
    return this.#closing;
  }

  async load(folder: string): Promise<void> {
    await this.#described((problem) => diagnostic(runtimeDiagnostics["load-failed"], { folder, problem }, originInMessage(problem, this.origins)), {
      kind: "load",
    });
  }

  async #described<Value>(describe: (problem: string) => Diagnostic, request: PortableRequest): Promise<Value> {
    try {
      return await this.channel.call<Value>(request);
    } catch (error) {
      if (error instanceof WorkerProblem) throw new LayerweaveError([describe(error.message.trim())]);
      throw error;
    }
  }
}

/** Stock onnxruntime-node on the CPU, in a worker thread per model: it runs a model on the thread that asks. */
export const portable: Backend = {
  name: "portable",
  async open({ folder, manifest, threads }: OpenRequest): Promise<BackendSession> {
    const unsupported = manifest.state.find((slot) => slot.dtype !== "float32");
    if (unsupported) fail(runtimeDiagnostics["unsupported-state"], { slot: unsupported.past, dtype: unsupported.dtype, backend: portable.name });
    const model: PortableModel = {
      graphPath: join(folder, manifest.graph.file),
      threads,
      inputs: manifest.inputs,
      outputs: manifest.outputs,
      state: manifest.state,
      contextLength: manifest.model.contextLength,
    };
    const session = new PortableSession(new WorkerChannel(new URL("./portable-worker.js", import.meta.url), model), manifest.origins, threads);
    try {
      await session.load(folder);
    } catch (error) {
      await session.close();
      throw error;
    }
    return session;
  },
};
