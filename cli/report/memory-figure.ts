import type { Plan, PlanBytes } from "../../core/plan/plan.js";
import { formatBytes, formatCount } from "../../core/plan/sizes.js";
import { contextAxis, type Frame, gigabyteAxis } from "./axes.js";
import { type Colour, paint } from "./colours.js";
import { el, type Markup, svg } from "./markup.js";
import { linearScale, logScale } from "./scale.js";

/** Kinds of memory, from the bottom of the stack up. */
export const memoryKinds: readonly { readonly name: string; readonly colour: Colour; readonly of: (bytes: PlanBytes) => number }[] = [
  { name: "runtime", colour: "runtime", of: (b) => b.runtime },
  { name: "weights", colour: "weights", of: (b) => b.weights + b.weightCopies },
  { name: "conv and SSM state", colour: "state", of: (b) => b.convState + b.ssmState + b.stateCopies },
  { name: "KV cache", colour: "kv-cache", of: (b) => b.kvCache },
  { name: "activations, logits, workspace", colour: "activations", of: (b) => b.activations + b.logits + b.workspace },
  { name: "allocator rounding", colour: "overhead", of: (b) => b.allocator },
];

export interface MemoryCurve {
  /** Plans of one model for growing contexts. */
  readonly plans: readonly Plan[];
  /** The plan that was asked for. */
  readonly plan: Plan;
  readonly contexts: readonly [from: number, to: number];
  /** Bytes at the top of the picture; what is above is cut off. */
  readonly top: number;
  /** What was measured in all, as dots. */
  readonly measured?: readonly { readonly context: number; readonly bytes: number }[];
}

const size = { width: 366, height: 268 };
const frame: Frame = { left: 36, right: 358, top: 26, bottom: 226 };

/** Memory by kind, stacked, over context length, against the budget. */
export function memoryFigure({ plans, plan, contexts, top, measured = [] }: MemoryCurve): Markup {
  const x = logScale(contexts, [frame.left, frame.right]);
  const y = linearScale([0, top], [frame.bottom, frame.top]);
  const clip = (bytes: number) => Math.max(y(Math.min(bytes, top)), frame.top);
  const below = new Map(plans.map((p) => [p, 0]));
  const areas = memoryKinds.map(({ name, colour, of }) => {
    const edges = plans.map((p) => {
      const low = below.get(p) ?? 0;
      const high = low + of(p.bytes);
      below.set(p, high);
      return { x: x(p.context), low: clip(low), high: clip(high) };
    });
    const points = [...edges.map((e) => `${e.x.toFixed(1)},${e.high.toFixed(1)}`), ...edges.reverse().map((e) => `${e.x.toFixed(1)},${e.low.toFixed(1)}`)];
    return el("polygon", { points: points.join(" "), fill: paint(colour), class: "area" }, el("title", {}, name));
  });
  const budget = plan.budget.bytes;
  // A label near the right edge ends there.
  const planned = x(plan.context) > frame.right - 70 ? { x: frame.right, "text-anchor": "end" } : { x: x(plan.context), "text-anchor": "middle" };
  const largest = plan.budget.maxContext;
  const cut = plans.some((p) => p.bytes.total > top);
  return svg(
    size.width,
    size.height,
    `Memory of ${plan.model} over context length`,
    areas,
    gigabyteAxis(frame, y, top),
    contextAxis(frame, x, contexts),
    el("line", { class: "planned", x1: x(plan.context), x2: x(plan.context), y1: frame.top, y2: frame.bottom }),
    // Lighter below, so that it shows on the areas too.
    el("line", { x1: frame.left, x2: frame.right, y1: y(budget), y2: y(budget), stroke: paint("panel"), "stroke-width": 4 }),
    el("line", { class: "budget", "data-bytes": String(budget), x1: frame.left, x2: frame.right, y1: y(budget), y2: y(budget) }),
    el("text", { class: "budget-label", x: frame.left + 6, y: y(budget) - 6 }, `budget ${formatBytes(budget)}`),
    largest >= contexts[0] && largest <= contexts[1] ? el("circle", { class: "largest", cx: x(largest), cy: y(budget), r: 4.5, fill: paint("bad"), stroke: paint("panel"), "stroke-width": 1.5 }, el("title", {}, `largest context ${largest}`)) : [],
    measured.map(({ context, bytes }) => el("circle", { class: "measured", cx: x(context), cy: clip(bytes), r: 4, fill: paint("text"), stroke: paint("panel"), "stroke-width": 1.5 }, el("title", {}, `measured at ${context}: ${formatBytes(bytes)}`))),
    el("text", { class: "halo", ...planned, y: frame.top - 8 }, `planned: ${formatCount(plan.context)}${cut ? ", cut off above" : ""}`),
  );
}
