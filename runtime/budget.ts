import { type Diagnostic, LayerweaveError } from "../core/diagnostics.js";
import type { Manifest } from "../core/manifest.js";
import { type Device, deviceNamed, deviceOfCard } from "../core/plan/devices.js";
import { type PlanModel, planModelOf } from "../core/plan/model.js";
import { overBudget, type Plan, plan } from "../core/plan/plan.js";
import { formatBytes } from "../core/plan/sizes.js";
import type { BackendChoice } from "./backends/backend.js";

export interface MemoryOptions {
  /** Bytes that all models on the device may use together. Default: what was free when this process had no model open there. */
  readonly budget?: number | undefined;
  /** Tokens that each sequence may grow to. */
  readonly context: number;
  /** Sequences at once. */
  readonly batch: number;
  /** Tokens of one prefill run. */
  readonly chunk: number;
  /** Goes on where the plan is over the budget; `refusal` then says by how much. */
  readonly force: boolean;
}

/** Memory that models are promised parts of: the system's, or a card's. */
interface Pool {
  /** What the open models of this process were promised. */
  readonly open: Set<MemoryReservation>;
  /** Available before the first of them was opened; those that are open have since used some of it. */
  availableWithoutModels: number;
}

/** By card; `undefined` is the system. */
const pools = new Map<number | undefined, Pool>();

function poolOf({ card }: BackendChoice): Pool {
  const pool = pools.get(card?.ordinal) ?? { open: new Set(), availableWithoutModels: 0 };
  pools.set(card?.ordinal, pool);
  if (pool.open.size === 0) pool.availableWithoutModels = card?.freeBytes ?? process.availableMemory();
  return pool;
}

/** The profile of what runs a model. */
const deviceOf = ({ card }: BackendChoice): Device => (card ? deviceOfCard(card) : deviceNamed("cpu"));

/**
 * Memory promised to one model, until it is released: its weights, and the state and activations of `batch` sequences of
 * `context` tokens. Made before anything of the model is allocated.
 */
export class MemoryReservation implements Disposable {
  readonly #model: PlanModel;
  readonly #options: MemoryOptions;
  readonly #device: Device;
  readonly #pool: Pool;
  #plan: Plan;
  #refusal: Diagnostic | undefined;

  /** @throws LayerweaveError `plan/over-budget`, itemised, unless `force` is set; `plan/bad-count` */
  constructor(manifest: Manifest, options: MemoryOptions, backend: BackendChoice) {
    this.#model = planModelOf(manifest);
    this.#options = options;
    this.#device = deviceOf(backend);
    this.#pool = poolOf(backend);
    [this.#plan, this.#refusal] = this.#ask(options.batch);
    this.#pool.open.add(this);
  }

  get plan(): Plan {
    return this.#plan;
  }

  /** Why the model would have been refused without `force`. */
  get refusal(): Diagnostic | undefined {
    return this.#refusal;
  }

  /** Makes the reservation large enough for a state of `batch` sequences. @throws LayerweaveError as the constructor; the reservation then stays as it was */
  cover(batch: number): void {
    if (batch > this.#plan.batch) [this.#plan, this.#refusal] = this.#ask(batch);
  }

  [Symbol.dispose](): void {
    this.#pool.open.delete(this);
  }

  #ask(batch: number): [Plan, Diagnostic | undefined] {
    const { budget = this.#pool.availableWithoutModels, context, chunk, force } = this.#options;
    // The runtime itself is there once, however many models it runs.
    const reserved = [...this.#pool.open].filter((other) => other !== this).reduce((sum, other) => sum + other.#plan.bytes.total - other.#plan.bytes.runtime, 0);
    const asked = plan(this.#model, { device: this.#device, quantize: "none", context, batch, chunk, budget: Math.max(0, budget - reserved) });
    const refusal = overBudget(asked);
    const explained = refusal && reserved > 0 ? { ...refusal, message: `${refusal.message} Of ${formatBytes(budget)}, ${formatBytes(reserved)} are reserved for models that are open.` } : refusal;
    if (explained && !force) throw new LayerweaveError([explained]);
    return [asked, explained];
  }
}
