import { invariant } from "../../core/diagnostics.js";
import { addDims, type Dim, divideDims, elementCount, mulDims, termsOf } from "../../core/dim.js";
import { bytesPerElement, type Dtype } from "../../core/dtype.js";
import type { LiveSet } from "../../core/plan/profile.js";
import type { Value } from "../ir/graph.js";
import type { Routing, Schedule, Step } from "./profile-schedule.js";
import { moments, type Temporary } from "./profile-workspace.js";

type Tensors = LiveSet["tensors"][number];

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
export function liveSets({ steps, resident, outputs, routings }: Schedule, { layers, repeated }: Shortened, phase: "prefill" | "decode"): LiveSet[] {
  const buffers = assignBuffers(steps, resident, new Set(outputs.map((v) => v.name)));
  const of = (name: string) => buffers.get(name) ?? name;
  const names = steps.map((step) => [...new Set([...readBy(step), ...step.outputs.map((v) => v.name)].map(of))]);
  const callers = new Set(outputs.filter((v) => v.name !== "logits").map((v) => v.name));
  const lastUse = new Map<string, number>();
  names.forEach((used, i) => {
    for (const name of used) lastUse.set(name, i);
  });
  const alive = new Map<string, Held>();
  const madeBy = steps.map((step) => step.outputs.filter((v) => of(v.name) === v.name && !callers.has(v.name)).map((v) => [v.name, heldBy(v)] as const));
  const ends = layers.map((_, layer) => steps.findLastIndex((s) => s.op === "Add" && s.name.startsWith(`/layers.${layer}/`) && s.name.endsWith("_residual")));
  const twins = new Map<string, Repeated>();
  for (const twin of repeated)
    steps.forEach((step, i) => {
      const end = ends[twin.layer] as number;
      if (i >= end || !step.name.startsWith(`/layers.${twin.layer}/`)) return;
      for (const [name] of madeBy[i] ?? []) if ((lastUse.get(name) ?? 0) > end && !step.outputs.some((v) => isShapeVector(step, v))) twins.set(name, twin);
    });

  const held = new Holdings(routings, phase === "decode");
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
      const during = [...(moment.results ? made.map(([, tensor]) => tensor) : []), ...moment.temporary.map(temporary)];
      if (during.length === 0) continue;
      for (const tensor of during) held.change(tensor, 1);
      frontier.add(step.name, held);
      for (const tensor of during) held.change(tensor, -1);
    }
    for (const [name, tensor] of made) {
      alive.set(name, tensor);
      held.change(tensor, 1);
    }
    for (const name of names[i] ?? []) {
      const tensor = lastUse.get(name) === i && name !== "logits" ? alive.get(name) : undefined;
      if (!tensor) continue;
      alive.delete(name);
      held.change(tensor, -1 - (twins.get(name)?.others.length ?? 0));
    }
  });
  return frontier.sets.map(({ at, tensors }) => ({ at: at.replace(/^\/layers\.(\d+)/, (_, number) => `/layers.${layers[Number(number)]}`), tensors }));
}

/** Equal tensors are one object, so that they are counted without being compared. */
const known = new Map<string, Held>();

function heldBy({ name, shape, dtype }: Value): Held {
  const use = name === "logits" ? "logits" : "activation";
  return one(`${shape.join()} ${dtype} ${use}`, () => ({ elements: elementCount(shape), dtype, use }));
}

const temporary = ({ elements, dtype }: Temporary) => one(`${elements} ${dtype}`, () => ({ elements, dtype, use: "workspace" }));

function one(key: string, make: () => Held): Held {
  const held = known.get(key) ?? make();
  known.set(key, held);
  return held;
}

const readBy = (step: Step): readonly string[] => [...step.inputs.flatMap((v) => (v && !v.constant ? [v.name] : [])), ...step.captured];

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
  readonly use: Tensors["use"];
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
    private readonly oneToken: boolean,
  ) {
    this.#bytes = new Polynomial(oneToken ? 1 : 2);
    this.#experts = new Map(routings.flatMap((r) => r.experts.map((extent) => [extent, r] as const)));
  }

  change(held: Held, by: number): void {
    const kind = this.#kind(held);
    kind.count += by;
    if (!kind.expert) {
      this.#bytes.add(this.#dim(held.elements), held.dtype, by);
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
    const common = ({ held: { dtype, use }, count }: Kind) => ({ count, dtype: typeName(dtype), use });
    return [
      ...[...this.#kinds.values()].filter((kind) => kind.count > 0 && !kind.expert).map((kind) => ({ ...common(kind), elements: this.#dim(kind.held.elements) })),
      ...this.#bounds().map(({ kind, most, spread }) => ({ ...common(kind), elements: most, spread })),
    ];
  }

  /**
   * The most that topK · M rows can hold when no expert gets more than M is all of them at the experts with most bytes per row;
   * spread evenly, each expert gets topK · M / E.
   */
  #bounds(): { kind: Kind; most: Dim; spread: Dim }[] {
    const perRow = (extent: Dim) => this.#perRow.get(extent) ?? 0;
    const heaviest = new Set([...new Set([...this.#routed].map(({ expert }) => expert?.routing))].flatMap((routing) => [...(routing?.experts ?? [])].sort((a, b) => perRow(b) - perRow(a)).slice(0, routing?.topK)));
    return [...this.#routed].flatMap((kind) => (kind.expert ? [{ kind, most: heaviest.has(kind.expert.extent) ? kind.expert.most : 0, spread: kind.expert.spread }] : []));
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
      most: this.#dim(mulDims(perRow, routing.rows)),
      spread: this.#dim(mulDims((perRow * routing.topK) / routing.experts.length, routing.rows)),
    };
  }

  #dim(elements: Dim): Dim {
    return this.oneToken ? withOneToken(elements) : elements;
  }
}

/** The moments that no other exceeds in every term. */
class Frontier {
  #kept: { readonly set: LiveSet; readonly worst: Polynomial; readonly even: Polynomial }[] = [];

  add(at: string, held: Holdings): void {
    const [worst, even] = held.total();
    if (this.#kept.some((other) => other.worst.covers(worst) && other.even.covers(even))) return;
    this.#kept = this.#kept.filter((other) => !(worst.covers(other.worst) && even.covers(other.even)));
    this.#kept.push({ set: { at, tensors: held.tensors() }, worst: worst.copy(), even: even.copy() });
  }

  get sets(): LiveSet[] {
    return this.#kept.map(({ set }) => set);
  }
}

/**
 * Bytes as a polynomial over what B, T, S and L have beyond their least values (B = 1 + b, T = least + t, S = T + s, L = l), so that
 * one is at least another for all sizes when each of its coefficients is. Kept for activations of 4 and of 2 bytes.
 */
class Polynomial {
  #coefficients: number[] = [];

  constructor(private readonly fewestTokens: number) {}

  add(elements: Dim, dtype: Dtype, times: number): void {
    const size = bytesPerElement[dtype];
    for (const { slot, coefficient } of shifted(elements, this.fewestTokens)) {
      this.#coefficients[2 * slot] = (this.#coefficients[2 * slot] ?? 0) + coefficient * size * times;
      this.#coefficients[2 * slot + 1] = (this.#coefficients[2 * slot + 1] ?? 0) + coefficient * (dtype === "float32" ? 2 : size) * times;
    }
  }

  /** At least the other in every term. */
  covers(other: Polynomial): boolean {
    for (let i = 0; i < other.#coefficients.length; i++) if ((other.#coefficients[i] ?? 0) > (this.#coefficients[i] ?? 0) + 1e-6) return false;
    return true;
  }

  copy(): Polynomial {
    const copy = new Polynomial(this.fewestTokens);
    copy.#coefficients = [...this.#coefficients];
    return copy;
  }
}

const slots = new Map<string, number>();
const shiftedDims = [new Map<Dim, readonly Slot[]>(), new Map<Dim, readonly Slot[]>(), new Map<Dim, readonly Slot[]>()];

interface Slot {
  readonly slot: number;
  readonly coefficient: number;
}

function shifted(elements: Dim, fewestTokens: number): readonly Slot[] {
  const known = shiftedDims[fewestTokens]?.get(elements);
  if (known) return known;
  const beyond: Readonly<Record<string, Dim>> = { B: "b + 1", T: addDims("t", fewestTokens), S: addDims("s + t", fewestTokens), L: "l" };
  const moved = termsOf(elements)
    .map(({ coefficient, symbols }) => mulDims(coefficient, ...symbols.map((symbol) => beyond[symbol] as Dim)))
    .reduce(addDims, 0);
  const result = termsOf(moved).map(({ coefficient, symbols }) => {
    const name = symbols.join("*");
    const slot = slots.get(name) ?? slots.size;
    slots.set(name, slot);
    return { slot, coefficient };
  });
  shiftedDims[fewestTokens]?.set(elements, result);
  return result;
}

/** All float32 in the graph is of the compute type; state, which is not, lies outside. */
const typeName = (dtype: Dtype): Tensors["dtype"] => (dtype === "float32" ? "compute" : dtype);

const oneTokenDims = new Map<Dim, Dim>();

function withOneToken(elements: Dim): Dim {
  const known = oneTokenDims.get(elements);
  if (known !== undefined) return known;
  const dim = termsOf(elements)
    .map(({ coefficient, symbols }) => mulDims(coefficient, ...symbols.filter((symbol) => symbol !== "T")))
    .reduce(addDims, 0);
  oneTokenDims.set(elements, dim);
  return dim;
}
