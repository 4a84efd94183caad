import { Worker } from "node:worker_threads";
import { LayerweaveError, diagnostic } from "../../core/diagnostics.js";
import { runtimeDiagnostics } from "../diagnostics.js";

export interface Call<Request> {
  readonly id: number;
  readonly request: Request;
}

export type Reply = { readonly id: number } & ({ readonly value: unknown } | { readonly problem: string });

/** What the worker starts with: the caller's data and the flags below. */
export interface WorkerStart<Data> {
  readonly data: Data;
  readonly flags: Int32Array;
}

/** Set by the worker while it is inside native code. */
export const busyFlag = 0;
/** Set by the main thread when the process ends: no native code is entered after that. */
export const stopFlag = 1;

/** The flags of every worker of this process. */
const running = new Set<Int32Array>();

/**
 * Lets native code return before the process ends: onnxruntime-node aborts the process when its thread is torn down
 * in the middle of a run, and the end of the process tears down all threads.
 */
function waitUntilIdle(): void {
  for (const flags of running) Atomics.store(flags, stopFlag, 1);
  for (const flags of running) Atomics.wait(flags, busyFlag, 1);
}

/** A problem the worker reported for one call, in its own words. */
export class WorkerProblem extends Error {
  override readonly name = "WorkerProblem";
}

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (reason: unknown) => void;
}

/**
 * Calls into one worker thread and matches its replies. The thread keeps the process alive only while a call
 * is pending. When the thread ends unasked, pending and later calls reject with `runtime/worker-stopped`.
 */
export class WorkerChannel<Request, Data> {
  readonly #worker: Worker;
  readonly #flags = new Int32Array(new SharedArrayBuffer(8));
  readonly #pending = new Map<number, Pending>();
  readonly #exited: Promise<void>;
  #nextId = 0;
  #stopped: string | undefined;

  constructor(script: URL, data: Data) {
    const start: WorkerStart<Data> = { data, flags: this.#flags };
    // The process's own flags (`--input-type`, loaders) are about its program, and some stop a worker from starting.
    this.#worker = new Worker(script, { workerData: start, execArgv: [] });
    this.#worker.unref();
    this.#worker.on("message", (reply: Reply) => this.#settle(reply));
    this.#worker.on("error", (error) => this.#stop(error.message));
    if (running.size === 0) process.on("exit", waitUntilIdle);
    running.add(this.#flags);
    this.#exited = new Promise((resolve) => {
      this.#worker.once("exit", (code) => {
        running.delete(this.#flags);
        if (running.size === 0) process.removeListener("exit", waitUntilIdle);
        this.#stop(`it exited with code ${code}`);
        resolve();
      });
    });
  }

  call<Value>(request: Request): Promise<Value> {
    if (this.#stopped !== undefined) return Promise.reject(this.#stoppedReason());
    const id = this.#nextId++;
    return new Promise<Value>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as (value: unknown) => void, reject });
      this.#worker.ref();
      this.#worker.postMessage({ id, request } satisfies Call<Request>);
    });
  }

  /** Resolves when the thread has ended by itself; the caller asks it to. */
  async ended(): Promise<void> {
    this.#worker.ref();
    await this.#exited;
  }

  #settle(reply: Reply): void {
    const pending = this.#pending.get(reply.id);
    this.#pending.delete(reply.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if ("problem" in reply) pending?.reject(new WorkerProblem(reply.problem));
    else pending?.resolve(reply.value);
  }

  #stop(problem: string): void {
    this.#stopped ??= problem;
    const waiting = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of waiting) reject(this.#stoppedReason());
  }

  #stoppedReason(): LayerweaveError {
    return new LayerweaveError([diagnostic(runtimeDiagnostics["worker-stopped"], { problem: this.#stopped ?? "" })]);
  }
}
