import { type Diagnostic, LayerweaveError } from "../core/diagnostics.js";
import type { Manifest } from "../core/manifest.js";
import { cudaContextBytes, type Device, deviceNamed, deviceOfCard } from "../core/plan/devices.js";
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
  // The context is part of every plan for a card, and there already when its free bytes are asked for.
  if (pool.open.size === 0) pool.availableWithoutModels = card ? card.freeBytes + cudaContextBytes : process.availableMemory();
  return pool;
}

/** The profile of what runs a model. Without kernels the native runtime holds no more than the portable one. */
const deviceOf = ({ card, ops }: BackendChoice): Device => (card ? deviceOfCard(card) : deviceNamed(ops === "kernels" ? "cpu-native" : "cpu"));

/** Bytes of states, snapshots and samplers, until they are given back. */
export class StateClaim implements Disposable {
  constructor(
    private readonly claims: Map<StateClaim, number>,
    bytes: number,
  ) {
    claims.set(this, bytes);
  }

  [Symbol.dispose](): void {
    this.claims.delete(this);
  }
}

/**
 * Memory promised to one model, until it is released: its weights, and the state and activations of `batch` sequences of
 * `context` tokens. Made before anything of the model is allocated. States and snapshots claim their bytes; those that the plan
 * has no room for are promised on top of it, as far as the budget goes.
 */
export class MemoryReservation implements Disposable {
  readonly #model: PlanModel;
  readonly #options: MemoryOptions;
  readonly #device: Device;
  readonly #pool: Pool;
  readonly #claims = new Map<StateClaim, number>();
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

  /** The profile that the plan is for. */
  get device(): Device {
    return this.#device;
  }

  get plan(): Plan {
    return this.#plan;
  }

  /** Why the model would have been refused without `force`. */
  get refusal(): Diagnostic | undefined {
    return this.#refusal;
  }

  /** Bytes of states and snapshots beyond those that the plan counts. */
  get beyondPlan(): number {
    return this.#beyond(this.#plan, 0);
  }

  /**
   * Claims a state of `batch` sequences, filled to the reserved context; runs over so many sequences are then covered too.
   * @throws LayerweaveError as the constructor; the reservation then stays as it was
   */
  claimState(batch: number): StateClaim {
    const bytes = (batch * this.#plan.holders.state) / this.#plan.batch;
    [this.#plan, this.#refusal] = this.#ask(Math.max(batch, this.#plan.batch), bytes);
    return new StateClaim(this.#claims, bytes);
  }

  /** Claims bytes for a snapshot, or for choosing tokens. @throws LayerweaveError as the constructor; the reservation then stays as it was */
  claimBytes(bytes: number): StateClaim {
    [this.#plan, this.#refusal] = this.#ask(this.#plan.batch, bytes);
    return new StateClaim(this.#claims, bytes);
  }

  [Symbol.dispose](): void {
    this.#pool.open.delete(this);
  }

  #beyond(plan: Plan, claimed: number): number {
    const claims = [...this.#claims.values()].reduce((sum, bytes) => sum + bytes, claimed);
    return Math.max(0, claims - plan.holders.state);
  }

  /** A plan for runs over `batch` sequences, with `claimed` bytes of state more than were claimed so far. */
  #ask(batch: number, claimed = 0): [Plan, Diagnostic | undefined] {
    const { budget = this.#pool.availableWithoutModels, context, chunk, force } = this.#options;
    // The runtime itself is there once, however many models it runs.
    const reserved = [...this.#pool.open].filter((other) => other !== this).reduce((sum, other) => sum + other.#plan.bytes.total + other.beyondPlan - other.#plan.bytes.runtime, 0);
    const planned = (room: number) => plan(this.#model, { device: this.#device, quantize: "none", context, batch, chunk, budget: Math.max(0, room) });
    const free = planned(budget - reserved);
    const beyond = this.#beyond(free, claimed);
    const asked = beyond === 0 ? free : planned(budget - reserved - beyond);
    const refusal = overBudget(asked);
    const taken = [
      ...(reserved > 0 ? [`${formatBytes(reserved)} are reserved for models that are open`] : []),
      ...(beyond > 0 ? [`${formatBytes(beyond)} are for states and snapshots beyond that plan`] : []),
    ];
    const explained = refusal && taken.length > 0 ? { ...refusal, message: `${refusal.message} Of ${formatBytes(budget)}, ${taken.join(", ")}.` } : refusal;
    if (explained && !force) throw new LayerweaveError([explained]);
    return [asked, explained];
  }
}
