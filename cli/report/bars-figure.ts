import { type Colour, paint } from "./colours.js";
import { el, type Markup, svg } from "./markup.js";
import { linearScale } from "./scale.js";

export interface Bar {
  readonly label: string;
  readonly parts: readonly { readonly name: string; readonly value: number; readonly colour: Colour }[];
  /** What the end of the bar says. */
  readonly text: string;
}

const width = 366;
const barHeight = 16;
const groupHeight = 42;
const textWidth = 112;

/** Horizontal bars of stacked parts under their labels, all to one scale. */
export function barsFigure(title: string, bars: readonly Bar[]): Markup {
  const sum = (bar: Bar) => bar.parts.reduce((total, { value }) => total + value, 0);
  const x = linearScale([0, Math.max(...bars.map(sum))], [0, width - textWidth]);
  return svg(
    width,
    bars.length * groupHeight,
    title,
    bars.map((bar, i) => {
      const y = i * groupHeight;
      let from = 0;
      const parts = bar.parts
        .filter(({ value }) => value > 0)
        .map(({ name, value, colour }) => {
          const part = el("rect", { x: x(from), y: y + 18, width: Math.max(x(value), 0.5), height: barHeight, fill: paint(colour) }, el("title", {}, name));
          from += value;
          return part;
        });
      return el("g", {}, el("text", { x: 0, y: y + 12 }, bar.label), parts, el("text", { class: "quiet", x: x(from) + 6, y: y + 18 + barHeight - 4 }, bar.text));
    }),
  );
}
