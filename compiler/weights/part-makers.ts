import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { type Diagnostic, InternalError, LayerweaveError } from "../../core/diagnostics.js";
import type { Part, Piece } from "./pieces.js";
import { pieceMaker } from "./transforms.js";

/** What a worker is asked for: to fill `into`, which is shared memory. */
export interface PieceCall {
  readonly id: number;
  readonly piece: Piece;
  readonly into: Uint8Array;
}

export type PieceReply = { readonly id: number } & ({ readonly scales: Float32Array | undefined } | { readonly diagnostics: readonly Diagnostic[] } | { readonly error: unknown });

/** A fifth of a second of work or so: some times what it takes to start a worker. */
const elementsPerWorker = 32e6;

/** More make no difference: one thread writes. */
const mostWorkers = 16;

/** Workers for weights of so many elements, when nobody says how many: none where it would be one. */
export function workersFor(elements: number): number {
  const workers = Math.min(availableParallelism(), mostWorkers, Math.floor(elements / elementsPerWorker));
  return workers < 2 ? 0 : workers;
}

interface Waiting {
  readonly resolve: (scales: Float32Array | undefined) => void;
  readonly reject: (reason: unknown) => void;
}

/** Makes parts of weights, on worker threads or, without any, on this one. The bytes are the same. */
export class PartMakers {
  readonly #workers: readonly PieceWorker[];
  readonly #makeHere = pieceMaker();

  constructor(workers: number) {
    this.#workers = Array.from({ length: workers }, () => new PieceWorker());
  }

  /** How many parts to ask for before the first is taken, so that each worker has the next at hand when it is done with one. */
  get ahead(): number {
    return 1 + 2 * this.#workers.length;
  }

  /**
   * Fills `into`, and the scales of the part. @returns `into`
   * @throws what the transform throws; InternalError when a worker ends.
   */
  async make({ piece, scales }: Part, into: Uint8Array): Promise<Uint8Array> {
    const [worker] = this.#workers.toSorted((a, b) => a.calls - b.calls);
    const made = worker ? await worker.make(piece, into) : this.#makeHere(piece, into);
    if (made) scales?.set(made);
    return into;
  }

  /** Ends the workers; parts that are not made by then fail. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#workers.map((worker) => worker.end()));
  }
}

/** The worker's compiled code, wherever this file is run from. */
const script = createRequire(import.meta.url).resolve("#dist/compiler/weights/piece-worker.js");

class PieceWorker {
  // The process's own flags (`--input-type`, loaders) are about its program, and some stop a worker from starting.
  // A young generation of its usual size would fill with what every call leaves, in every worker, before anything is freed.
  readonly #worker = new Worker(script, { execArgv: [], resourceLimits: { maxYoungGenerationSizeMb: 2 } });
  readonly #waiting = new Map<number, Waiting>();
  #nextId = 0;
  #ended: unknown;

  constructor() {
    this.#worker.on("message", (reply: PieceReply) => {
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if ("diagnostics" in reply) waiting?.reject(new LayerweaveError(reply.diagnostics));
      else if ("error" in reply) waiting?.reject(reply.error);
      else waiting?.resolve(reply.scales);
    });
    this.#worker.on("error", (error) => this.#fail(error));
    this.#worker.on("exit", (code) => this.#fail(new InternalError(`a worker that makes weights exited with code ${code}`)));
  }

  get calls(): number {
    return this.#waiting.size;
  }

  make(piece: Piece, into: Uint8Array): Promise<Float32Array | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(this.#ended);
      const id = this.#nextId++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, piece, into } satisfies PieceCall);
    });
  }

  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  #fail(error: unknown): void {
    this.#ended ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }
}
