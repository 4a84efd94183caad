import { type Diagnostic, LayerweaveError } from "../core/diagnostics.js";
import type { Manifest } from "../core/manifest.js";
import { deviceNamed } from "../core/plan/devices.js";
import { type PlanModel, planModelOf } from "../core/plan/model.js";
import { overBudget, type Plan, plan } from "../core/plan/plan.js";
import { formatBytes } from "../core/plan/sizes.js";

export interface MemoryOptions {
  /** Bytes that all models on the device may use together. Default: what this process could use when it had no model open. */
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

const device = deviceNamed("cpu");

/** What the open models of this process were promised. */
const open = new Set<MemoryReservation>();

/** Memory available before the first of them was opened; those that are open have since used some of it. */
let availableWithoutModels = 0;

/**
 * Memory promised to one model, until it is released: its weights, and the state and activations of `batch` sequences of
 * `context` tokens. Made before anything of the model is allocated.
 */
export class MemoryReservation implements Disposable {
  readonly #model: PlanModel;
  readonly #options: MemoryOptions;
  #plan: Plan;
  #refusal: Diagnostic | undefined;

  /** @throws LayerweaveError `plan/over-budget`, itemised, unless `force` is set; `plan/bad-count` */
  constructor(manifest: Manifest, options: MemoryOptions) {
    this.#model = planModelOf(manifest);
    this.#options = options;
    if (open.size === 0) availableWithoutModels = process.availableMemory();
    [this.#plan, this.#refusal] = this.#ask(options.batch);
    open.add(this);
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
    open.delete(this);
  }

  #ask(batch: number): [Plan, Diagnostic | undefined] {
    const { budget = availableWithoutModels, context, chunk, force } = this.#options;
    // The runtime itself is there once, however many models it runs.
    const reserved = [...open].filter((other) => other !== this).reduce((sum, other) => sum + other.#plan.bytes.total - other.#plan.bytes.runtime, 0);
    const asked = plan(this.#model, { device, quantize: "none", context, batch, chunk, budget: Math.max(0, budget - reserved) });
    const refusal = overBudget(asked);
    const explained = refusal && reserved > 0 ? { ...refusal, message: `${refusal.message} Of ${formatBytes(budget)}, ${formatBytes(reserved)} are reserved for models that are open.` } : refusal;
    if (explained && !force) throw new LayerweaveError([explained]);
    return [asked, explained];
  }
}
