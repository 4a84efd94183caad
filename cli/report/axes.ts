import { formatCount } from "../../core/plan/sizes.js";
import { el, type Markup } from "./markup.js";
import { linearTicks, powersWithin, type Scale } from "./scale.js";

/** Where in a picture the data lies. */
export interface Frame {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Contexts below, as powers of two with room between their labels. */
export function contextAxis({ left, right, bottom, top }: Frame, x: Scale, [low, high]: readonly [number, number]): Markup[] {
  const octaves = Math.log2(high / low);
  return [
    el("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    ...powersWithin([low, high], octaves > 7 ? 4 : 2).map((tokens) =>
      el("g", {}, el("line", { class: "axis", x1: x(tokens), x2: x(tokens), y1: top, y2: bottom, opacity: 0.5 }), el("text", { class: "quiet", x: x(tokens), y: bottom + 15, "text-anchor": "middle" }, formatCount(tokens))),
    ),
    el("text", { class: "quiet", x: (left + right) / 2, y: bottom + 31, "text-anchor": "middle" }, "context, tokens"),
  ];
}

/** Amounts of memory to the left, in GB = 10⁹ bytes. */
export function gigabyteAxis({ left, right, top }: Frame, y: Scale, high: number): Markup[] {
  return [
    ...linearTicks(high / 1e9, 5).map((gigabytes) =>
      el(
        "g",
        { class: "tick", "data-bytes": String(gigabytes * 1e9), "data-y": y(gigabytes * 1e9) },
        el("line", { class: "axis", x1: left, x2: right, y1: y(gigabytes * 1e9), y2: y(gigabytes * 1e9) }),
        el("text", { class: "quiet", x: left - 6, y: y(gigabytes * 1e9) + 4, "text-anchor": "end" }, gigabytes),
      ),
    ),
    el("text", { class: "quiet", x: left - 6, y: top - 8, "text-anchor": "end" }, "GB"),
  ];
}
