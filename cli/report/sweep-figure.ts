import { formatBytes, formatCount } from "../../core/plan/sizes.js";
import type { Sweep, SweepPoint } from "../sweep-points.js";
import type { Frame } from "./axes.js";
import { colourSheet, figureSheet, paint, seriesColour } from "./colours.js";
import { el, type Markup, svg, verbatim } from "./markup.js";
import { decimalTicks, linearScale, linearTicks, logScale } from "./scale.js";

const size = { width: 720, height: 460 };
const frame: Frame = { left: 66, right: 560, top: 46, bottom: 404 };

/** What a sweep varies: the knobs, and context and batch where they have several values. */
interface Dimension {
  readonly name: string;
  readonly values: readonly number[];
  readonly of: (point: SweepPoint) => number;
}

function dimensions({ axes, points }: Sweep): readonly Dimension[] {
  const all = (name: string, of: (point: SweepPoint) => number): Dimension => ({ name, of, values: [...new Set(points.map(of))].sort((a, b) => a - b) });
  const varied = [...axes.map(({ name }) => all(name, ({ knobs }) => knobs[name] ?? Number.NaN)), all("context", ({ plan }) => plan.context), all("batch", ({ plan }) => plan.batch)];
  return varied.filter(({ values }) => values.length > 1);
}

/**
 * A picture of its own: memory against the speed of decoding, a point for each plan. The first thing that is varied gives the colour, the
 * second the size. Points over the budget are hollow.
 */
export function sweepFigure(swept: Sweep): string {
  const { points } = swept;
  const [byColour, bySize] = dimensions(swept);
  const bytes = ({ plan }: SweepPoint) => plan.bytes.total;
  const rate = ({ plan }: SweepPoint) => plan.roofline.decodeTokensPerSecond;
  const budget = points[0]?.plan.budget.bytes ?? 0;
  const right = Math.max(budget * 1.1, Math.min(Math.max(...points.map(bytes)) * 1.05, budget * 4));
  const rates = [Math.min(...points.map(rate)) / 1.2, Math.max(...points.map(rate)) * 1.2] as const;
  const x = linearScale([0, right], [frame.left, frame.right]);
  const y = logScale(rates, [frame.bottom, frame.top]);
  const place = (dimension: Dimension | undefined, point: SweepPoint) => Math.max(0, dimension?.values.indexOf(dimension.of(point)) ?? 0);
  const colour = (index: number) => paint(seriesColour(index));
  const radius = (index: number) => 3.5 + (index * 5) / Math.max(1, (bySize?.values.length ?? 1) - 1);
  const drawn = points.filter((point) => bytes(point) <= right);
  const beyond = points.length - drawn.length;
  const dot = (point: SweepPoint) => {
    const paintedWith = colour(place(byColour, point));
    const { fits } = point.plan.budget;
    return el(
      "circle",
      { class: "point", cx: x(bytes(point)), cy: y(rate(point)), r: radius(place(bySize, point)), fill: fits ? paintedWith : "none", "fill-opacity": 0.75, stroke: paintedWith, "stroke-width": 1.4 },
      el("title", {}, pointText(swept, point)),
    );
  };
  const key = (dimension: Dimension, top: number, mark: (index: number, y: number) => Markup): Markup =>
    el(
      "g",
      {},
      el("text", { x: frame.right + 18, y: top, "font-weight": 600 }, dimension.name),
      dimension.values.slice(0, 8).map((value, i) => el("g", {}, mark(i, top + 16 + i * 19), el("text", { x: frame.right + 42, y: top + 20 + i * 19 }, dimension.name === "context" ? formatCount(value) : value))),
      dimension.values.length > 8 ? el("text", { class: "quiet", x: frame.right + 18, y: top + 20 + 8 * 19 }, `and ${dimension.values.length - 8} more`) : [],
    );
  const keyHeight = (dimension: Dimension | undefined) => (dimension ? 44 + Math.min(9, dimension.values.length) * 19 : 0);
  const picture = svg(
    size.width,
    size.height,
    "Memory against decoding speed",
    el("style", {}, verbatim(`${colourSheet()}${figureSheet}svg{background:var(--panel)}`)),
    el("text", { x: 16, y: 22, "font-weight": 600 }, `${points[0]?.plan.model ?? ""} on ${points[0]?.plan.device ?? ""}: ${points.length} plans`),
    decimalTicks(rates).map((value) =>
      el("g", {}, el("line", { class: "axis", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }), el("text", { class: "quiet", x: frame.left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toLocaleString("en-US"))),
    ),
    linearTicks(right / 1e9, 6).map((gigabytes) =>
      el("g", {}, el("line", { class: "axis", x1: x(gigabytes * 1e9), x2: x(gigabytes * 1e9), y1: frame.top, y2: frame.bottom }), el("text", { class: "quiet", x: x(gigabytes * 1e9), y: frame.bottom + 17, "text-anchor": "middle" }, gigabytes)),
    ),
    el("text", { class: "quiet", x: (frame.left + frame.right) / 2, y: frame.bottom + 36, "text-anchor": "middle" }, `memory, GB = 10⁹${beyond > 0 ? `; ${beyond} plans lie beyond` : ""}`),
    el("text", { class: "quiet", x: 16, y: frame.top - 8 }, "decode at best, tokens/s"),
    el("line", { class: "budget", x1: x(budget), x2: x(budget), y1: frame.top, y2: frame.bottom }),
    el("text", { class: "budget-label", x: x(budget) - 6, y: frame.top + 12, "text-anchor": "end" }, `budget ${formatBytes(budget)}`),
    drawn.map(dot),
    byColour ? key(byColour, frame.top + 8, (i, at) => el("circle", { cx: frame.right + 26, cy: at, r: 5.5, fill: colour(i) })) : [],
    bySize ? key(bySize, frame.top + 8 + keyHeight(byColour), (i, at) => el("circle", { cx: frame.right + 26, cy: at, r: radius(i), fill: paint("quiet") })) : [],
    el("text", { class: "quiet", x: frame.right + 18, y: frame.bottom + 17 }, "hollow: over budget"),
  );
  return `${picture.markup}\n`;
}

function pointText({ axes }: Sweep, { knobs, plan }: SweepPoint): string {
  const named = axes.map(({ name }) => `${name} ${knobs[name]}`);
  return [...named, `context ${formatCount(plan.context)}`, `batch ${plan.batch}`, formatBytes(plan.bytes.total), `${plan.roofline.decodeTokensPerSecond.toPrecision(3)} tokens/s`].join(", ");
}
