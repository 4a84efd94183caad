import { contextAxis, type Frame } from "./axes.js";
import { paint, seriesColour } from "./colours.js";
import { el, type Markup, svg } from "./markup.js";
import { decimalTicks, logScale } from "./scale.js";

export interface Line {
  readonly label: string;
  readonly points: readonly { readonly context: number; readonly value: number }[];
}

const size = { width: 366, height: 250 };
const frame: Frame = { left: 48, right: 358, top: 10, bottom: 208 };
const dashes = [undefined, "7 3", "2 3", "9 3 2 3"];

/** The dash that tells a line from others where colours don't. */
export const lineDash = (index: number): string | undefined => dashes[index % dashes.length];

/** Values over context length, both on logarithmic scales. */
export function linesFigure(title: string, lines: readonly Line[], contexts: readonly [number, number], tick: (value: number) => string): Markup {
  const values = lines.flatMap(({ points }) => points.map(({ value }) => value));
  const range = [Math.min(...values) / 1.15, Math.max(...values) * 1.15] as const;
  const x = logScale(contexts, [frame.left, frame.right]);
  const y = logScale(range, [frame.bottom, frame.top]);
  return svg(
    size.width,
    size.height,
    title,
    decimalTicks(range).map((value) =>
      el("g", {}, el("line", { class: "axis", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }), el("text", { class: "quiet", x: frame.left - 6, y: y(value) + 4, "text-anchor": "end" }, tick(value))),
    ),
    contextAxis(frame, x, contexts),
    lines.map(({ label, points }, i) =>
      el(
        "polyline",
        { points: points.map((p) => `${x(p.context).toFixed(1)},${y(p.value).toFixed(1)}`).join(" "), fill: "none", stroke: paint(seriesColour(i)), "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-dasharray": lineDash(i) },
        el("title", {}, label),
      ),
    ),
  );
}
