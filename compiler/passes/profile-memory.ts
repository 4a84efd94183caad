import { invariant } from "../../core/diagnostics.js";
import { addDims, type Dim, divideDims, elementCount, mulDims, termsOf } from "../../core/dim.js";
import { bytesPerElement, type Dtype } from "../../core/dtype.js";
import type { KernelCall, LiveSet } from "../../core/plan/profile.js";
import type { Value } from "../ir/graph.js";
import type { Routing, Schedule, Step } from "./profile-schedule.js";
import { moments, type Temporary } from "./profile-workspace.js";

/** Nodes whose result is their input under another shape (`KernelDefBuilder::Alias`). */
const aliasing = new Set(["Reshape", "Unsqueeze", "Squeeze"]);

/** A run of equal layers of which the schedule holds the last three alone: the first of these, and where the others stood. */
export interface Repeated {
  /** Layer of the schedule, by the number in its nodes' names. */
  readonly layer: number;
  /** Layers of the whole model that the schedule lacks, all before this one. */
  readonly others: readonly number[];
}

export interface Shortened {
  /** Layer of the schedule → layer of the whole model. */
  readonly layers: readonly number[];
  readonly repeated: readonly Repeated[];
}

/**
 * What is alive at each moment of a run, reduced to the moments that can be the peak.
 *
 * A result lives from the node that computes it to the last one that reads it, as in ONNX Runtime's allocation planner
 * (`PlannerImpl`): aliases share their input's buffer, and a freed buffer is kept for the next tensor of the same shape where
 * shapes are known while planning, which here are those of shape vectors. Graph inputs, weights and state belong to the caller.
 *
 * What a layer leaves behind for the end of the run, its absent twins leave behind too, for as long.
 */
export function liveSets({ steps, resident, outputs, routings }: Schedule, { layers, repeated }: Shortened, phase: "prefill" | "decode", computeDtype: Dtype): LiveSet[] {
  const buffers = assignBuffers(steps, resident, new Set(outputs.map((v) => v.name)));
  const of = (name: string) => buffers.get(name) ?? name;
  const callers = new Set(outputs.filter((v) => v.name !== "logits").map((v) => v.name));
  const lastUse = new Map<string, number>();
  steps.forEach((step, i) => {
    for (const name of readBy(step)) lastUse.set(of(name), i);
    for (const { name } of step.outputs) lastUse.set(of(name), i);
  });
  const freed = steps.map((): string[] => []);
  for (const [name, i] of lastUse) if (name !== "logits") freed[i]?.push(name);
  const alive = new Map<string, Held>();
  const tensors = new Tensors();
  const madeBy = steps.map((step) => step.outputs.filter((v) => of(v.name) === v.name && !callers.has(v.name)).map((v) => [v.name, tensors.result(v)] as const));
  const ends = layers.map((_, layer) => steps.findLastIndex((s) => s.name.startsWith(`/layers.${layer}/`) && s.name.endsWith("_residual")));
  const twins = new Map<string, Repeated>();
  for (const twin of repeated)
    steps.forEach((step, i) => {
      const end = ends[twin.layer] as number;
      if (i >= end || !step.name.startsWith(`/layers.${twin.layer}/`)) return;
      for (const [name] of madeBy[i] ?? []) if ((lastUse.get(name) ?? 0) > end && !step.outputs.some((v) => isShapeVector(step, v))) twins.set(name, twin);
    });

  const basis = new Basis(phase === "decode", computeDtype);
  const held = new Holdings(routings, basis);
  const frontier = new Frontier();
  const heldOf = new Map(madeBy.flat());
  let layer = -1;
  steps.forEach((step, i) => {
    if (layer < 0 || (layer + 1 < layers.length && i > (ends[layer] as number))) {
      const [from, to] = [layer < 0 ? -1 : (layers[layer] as number), layers[++layer] as number];
      for (const [name, { others }] of twins) held.change(heldOf.get(name) as Held, others.filter((other) => other >= from && other < to).length);
    }
    const made = (madeBy[i] ?? []).filter(([name]) => !alive.has(name));
    for (const moment of moments(step, phase)) {
      // Without anything freed or only needed meanwhile, the next moment holds all that this one does.
      if (freed[i]?.length === 0 && moment.temporary.length === 0 && !moment.kernel && i + 1 < steps.length) continue;
      const during = [...(moment.results ? made.map(([, tensor]) => tensor) : []), ...moment.temporary.map((t) => tensors.temporary(t))];
      for (const tensor of during) held.change(tensor, 1);
      const kernel = moment.kernel && "rows" in moment.kernel ? { ...moment.kernel, rows: basis.dim(moment.kernel.rows) } : moment.kernel;
      frontier.add({ at: step.name, ...(kernel && { kernel }) }, held);
      for (const tensor of during) held.change(tensor, -1);
    }
    for (const [name, tensor] of made) {
      alive.set(name, tensor);
      held.change(tensor, 1);
    }
    for (const name of freed[i] ?? []) {
      const tensor = alive.get(name);
      if (!tensor) continue;
      alive.delete(name);
      held.change(tensor, -1 - (twins.get(name)?.others.length ?? 0));
    }
  });
  return frontier.sets.map((set) => ({ ...set, at: set.at.replace(/^\/layers\.(\d+)/, (_, number) => `/layers.${layers[Number(number)]}`) }));
}

/** Equal tensors as one object, so that they are counted without being compared. */
class Tensors {
  readonly #known = new Map<string, Held>();

  result({ name, shape, dtype }: Value): Held {
    const use = name === "logits" ? "logits" : "activation";
    return this.#one(`${shape.join()} ${dtype} ${use}`, () => ({ elements: elementCount(shape), dtype, use }));
  }

  temporary({ elements, dtype }: Temporary): Held {
    return this.#one(`${elements} ${dtype}`, () => ({ elements, dtype, use: "workspace" }));
  }

  #one(key: string, make: () => Held): Held {
    const held = this.#known.get(key) ?? make();
    this.#known.set(key, held);
    return held;
  }
}

function readBy({ inputs, captured }: Step): readonly string[] {
  const names = [...captured];
  for (const v of inputs) if (v && !v.constant) names.push(v.name);
  return names;
}

/** Value → the value in whose buffer it lies, where that is another. */
function assignBuffers(steps: readonly Step[], resident: ReadonlySet<string>, outputs: ReadonlySet<string>): ReadonlyMap<string, string> {
  const buffers = new Map<string, string>();
  const of = (name: string) => buffers.get(name) ?? name;
  for (const { op, inputs, outputs: [result] } of steps) // prettier-ignore
    if (aliasing.has(op) && inputs[0] && result && !outputs.has(result.name)) buffers.set(result.name, of(inputs[0].name));

  const reads = new Map<string, number>();
  for (const step of steps) for (const name of readBy(step)) reads.set(of(name), (reads.get(of(name)) ?? 0) + 1);
  const vectors = new Map<string, Value>();
  const free: Value[] = [];
  for (const step of steps) {
    for (const output of step.outputs.filter((v) => isShapeVector(step, v))) {
      const at = free.findIndex((v) => v.shape[0] === output.shape[0]);
      const reused = at < 0 ? output : (free.splice(at, 1)[0] as Value);
      vectors.set(reused.name, reused);
      reads.set(reused.name, reads.get(output.name) ?? 0);
      if (reused !== output) buffers.set(output.name, reused.name);
    }
    for (const name of readBy(step).map(of)) {
      reads.set(name, (reads.get(name) ?? 0) - 1);
      const vector = vectors.get(name);
      if (vector && reads.get(name) === 0 && !resident.has(name)) free.unshift(vector);
    }
  }
  return buffers;
}

const isShapeVector = ({ op }: Step, { dtype, shape }: Value) => (op === "Shape" || op === "Concat" || op === "Gather") && dtype === "int64" && shape.length === 1 && typeof shape[0] === "number";

interface Held {
  readonly elements: Dim;
  readonly dtype: Dtype;
  readonly use: LiveSet["tensors"][number]["use"];
}

/** A kind of tensor that may be alive several times. Rows of experts are kept apart, by row. */
interface Kind {
  readonly held: Held;
  readonly expert?: { readonly routing: Routing; readonly extent: Dim; readonly bytesPerRow: number; readonly most: Dim; readonly spread: Dim };
  count: number;
}

/** What is alive now, with its bytes as a polynomial that follows along. */
class Holdings {
  readonly #experts: ReadonlyMap<Dim, Routing>;
  readonly #kinds = new Map<Held, Kind>();
  readonly #perRow = new Map<Dim, number>();
  readonly #routed = new Set<Kind>();
  readonly #bytes: Polynomial;

  constructor(
    routings: readonly Routing[],
    private readonly basis: Basis,
  ) {
    this.#bytes = new Polynomial(basis);
    this.#experts = new Map(routings.flatMap((r) => r.experts.map((extent) => [extent, r] as const)));
  }

  change(held: Held, by: number): void {
    const kind = this.#kind(held);
    kind.count += by;
    if (!kind.expert) {
      this.#bytes.add(this.basis.dim(held.elements), held.dtype, by);
      return;
    }
    const { extent, bytesPerRow } = kind.expert;
    this.#perRow.set(extent, (this.#perRow.get(extent) ?? 0) + by * bytesPerRow);
    if (kind.count > 0) this.#routed.add(kind);
    else this.#routed.delete(kind);
  }

  /** Bytes in the worst and in the even case. */
  total(): readonly [worst: Polynomial, even: Polynomial] {
    if (this.#routed.size === 0) return [this.#bytes, this.#bytes];
    const [worst, even] = [this.#bytes.copy(), this.#bytes.copy()];
    for (const { kind, most, spread } of this.#bounds()) {
      worst.add(most, kind.held.dtype, kind.count);
      even.add(spread, kind.held.dtype, kind.count);
    }
    return [worst, even];
  }

  tensors(): LiveSet["tensors"] {
    const common = ({ held: { dtype, use }, count }: Kind) => ({ count, dtype: this.basis.typeName(dtype), use });
    return [
      ...[...this.#kinds.values()].filter((kind) => kind.count > 0 && !kind.expert).map((kind) => ({ ...common(kind), elements: this.basis.dim(kind.held.elements) })),
      ...this.#bounds().map(({ kind, most, spread }) => ({ ...common(kind), elements: most, spread })),
    ];
  }

  /**
   * The most that topK · M rows can hold when no expert gets more than M is all of them at the experts with most bytes per row;
   * spread evenly, each expert gets topK · M / E.
   */
  #bounds(): { kind: Kind; most: Dim; spread: Dim }[] {
    const heaviest = new Map<Routing, Dim[]>();
    for (const { expert } of this.#routed) if (expert && !heaviest.has(expert.routing)) heaviest.set(expert.routing, this.#heaviest(expert.routing));
    const bounds: { kind: Kind; most: Dim; spread: Dim }[] = [];
    for (const kind of this.#routed) if (kind.expert) bounds.push({ kind, most: heaviest.get(kind.expert.routing)?.includes(kind.expert.extent) ? kind.expert.most : 0, spread: kind.expert.spread });
    return bounds;
  }

  #heaviest({ experts, topK }: Routing): Dim[] {
    const perRow = (extent: Dim) => this.#perRow.get(extent) ?? 0;
    return experts.filter((extent) => perRow(extent) > 0).sort((a, b) => perRow(b) - perRow(a)).slice(0, topK);
  }

  #kind(held: Held): Kind {
    const known = this.#kinds.get(held);
    if (known) return known;
    const extent = typeof held.elements === "string" ? /n\(.*\)/.exec(held.elements)?.[0] : undefined;
    const routing = extent === undefined ? undefined : this.#experts.get(extent);
    invariant(extent === undefined || routing, `the extent ${extent} has no bound`);
    const kind: Kind = { held, ...(extent !== undefined && routing ? { expert: this.#expert(held, extent, routing) } : {}), count: 0 };
    this.#kinds.set(held, kind);
    return kind;
  }

  #expert({ elements, dtype }: Held, extent: Dim, routing: Routing): NonNullable<Kind["expert"]> {
    const perRow = Number(divideDims(elements, extent));
    return {
      routing,
      extent,
      bytesPerRow: perRow * bytesPerElement[dtype],
      most: this.basis.dim(mulDims(perRow, routing.rows)),
      spread: this.basis.dim(mulDims((perRow * routing.topK) / routing.experts.length, routing.rows)),
    };
  }
}

/** Whether one kernel needs at least what another does, on any device and for any sizes. */
function needsAsMuch(one: KernelCall | undefined, other: KernelCall | undefined): boolean {
  if (!other || one === other) return true;
  if (one?.op === "QuantizedLinear" && other.op === "QuantizedLinear") return one.rows === other.rows && one.depth >= other.depth;
  return JSON.stringify(one) === JSON.stringify(other);
}

/** The moments that no other exceeds in every term. */
class Frontier {
  #kept: { readonly set: LiveSet; readonly worst: Polynomial; readonly even: Polynomial }[] = [];

  add({ at, kernel }: Omit<LiveSet, "tensors">, held: Holdings): void {
    const [worst, even] = held.total();
    if (this.#kept.some((other) => other.worst.covers(worst) && other.even.covers(even) && needsAsMuch(other.set.kernel, kernel))) return;
    this.#kept = this.#kept.filter((other) => !(worst.covers(other.worst) && even.covers(other.even) && needsAsMuch(kernel, other.set.kernel)));
    this.#kept.push({ set: { at, tensors: held.tensors(), ...(kernel && { kernel }) }, worst: worst.copy(), even: even.copy() });
  }

  get sets(): LiveSet[] {
    return this.#kept.map(({ set }) => set);
  }
}

interface Term {
  readonly slot: number;
  readonly coefficient: number;
}

/**
 * Dimensions written in what B, T, S and L have beyond their least values (B = 1 + b, T = least + t, S = T + s, L = l), so that
 * one is at least another for all sizes when each of its coefficients is. For a single token, T is 1.
 */
class Basis {
  readonly #slots = new Map<string, number>();
  readonly #terms = new Map<Dim, readonly Term[]>();
  readonly #dims = new Map<Dim, Dim>();
  readonly #beyond: Readonly<Record<string, Dim>>;

  constructor(
    private readonly oneToken: boolean,
    /** Its size is the device's choice: what the graph has of it is of the type that activations have there. */
    private readonly computeDtype: Dtype,
  ) {
    const tokens = oneToken ? 1 : addDims("t", 2);
    this.#beyond = { B: addDims("b", 1), T: tokens, S: addDims("s", tokens), L: "l" };
  }

  terms(elements: Dim): readonly Term[] {
    let terms = this.#terms.get(elements);
    if (!terms) {
      terms = termsOf(this.#substituted(elements, this.#beyond)).map(({ coefficient, symbols }) => ({ slot: this.#slot(symbols.join("*")), coefficient }));
      this.#terms.set(elements, terms);
    }
    return terms;
  }

  typeName(dtype: Dtype): LiveSet["tensors"][number]["dtype"] {
    return dtype === this.computeDtype ? "compute" : dtype;
  }

  /** A dimension as it is for this many tokens. */
  dim(elements: Dim): Dim {
    if (!this.oneToken) return elements;
    const dim = this.#dims.get(elements) ?? this.#substituted(elements, { T: 1 });
    this.#dims.set(elements, dim);
    return dim;
  }

  #substituted(elements: Dim, values: Readonly<Record<string, Dim>>): Dim {
    return termsOf(elements)
      .map(({ coefficient, symbols }) => mulDims(coefficient, ...symbols.map((symbol) => values[symbol] ?? symbol)))
      .reduce(addDims, 0);
  }

  #slot(symbols: string): number {
    const slot = this.#slots.get(symbols) ?? this.#slots.size;
    this.#slots.set(symbols, slot);
    return slot;
  }
}

/** Bytes as a polynomial, for activations of 4 and of 2 bytes. */
class Polynomial {
  #coefficients: number[] = [];

  constructor(private readonly basis: Basis) {}

  add(elements: Dim, dtype: Dtype, times: number): void {
    const type = this.basis.typeName(dtype);
    const [large, small] = type === "compute" ? [4, 2] : [bytesPerElement[type], bytesPerElement[type]];
    for (const { slot, coefficient } of this.basis.terms(elements)) {
      this.#coefficients[2 * slot] = (this.#coefficients[2 * slot] ?? 0) + coefficient * large * times;
      this.#coefficients[2 * slot + 1] = (this.#coefficients[2 * slot + 1] ?? 0) + coefficient * small * times;
    }
  }

  /** At least the other in every term. */
  covers(other: Polynomial): boolean {
    for (let i = 0; i < other.#coefficients.length; i++) if ((other.#coefficients[i] ?? 0) > (this.#coefficients[i] ?? 0) + 1e-6) return false;
    return true;
  }

  copy(): Polynomial {
    const copy = new Polynomial(this.basis);
    copy.#coefficients = [...this.#coefficients];
    return copy;
  }
}
