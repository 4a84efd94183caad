import type { ChannelMixerKind } from "../../dsl/channel-mixers/index.js";
import type { MixerKind } from "../../dsl/mixers/index.js";
import type { Layout } from "../../dsl/resolve.js";
import { type Colour, paint } from "./colours.js";
import { el, type Markup, svg } from "./markup.js";

interface Look {
  readonly letter: string;
  readonly colour: Colour;
  readonly meaning: string;
}

/** A new mixer adds a line. */
const mixers: Readonly<Record<MixerKind, Look>> = {
  attention: { letter: "A", colour: "attention", meaning: "attention" },
  mamba: { letter: "M", colour: "mamba", meaning: "Mamba" },
};
const channelMixers: Readonly<Record<ChannelMixerKind, Look>> = {
  mlp: { letter: "D", colour: "mlp", meaning: "dense MLP" },
  moe: { letter: "E", colour: "moe", meaning: "mixture of experts" },
};

/** Layers that are drawn one by one; a longer stack is drawn as far as that, and the rest is counted. */
const mostDrawn = 240;
const mostInLine = 16;
const cell = { width: 21, height: 20, gap: 1.5 };
const labelWidth = 30;

/** The stack of layers, first to last in lines: above the mixer of each layer, below its channel mixer. */
export function stackFigure({ name, layers }: Layout): Markup {
  const drawn = layers.slice(0, mostDrawn);
  const inLine = lineLength(layers.map((layer) => JSON.stringify(layer)));
  const lines = Math.ceil(drawn.length / inLine);
  const lineHeight = 2 * cell.height + 12;
  const width = labelWidth + mostInLine * cell.width;
  const rest = layers.length - drawn.length;
  const boxes = drawn.map(({ mixer, channelMixer }, i) => {
    const [x, y] = [labelWidth + (i % inLine) * cell.width, Math.floor(i / inLine) * lineHeight];
    return el(
      "g",
      { class: "layer" },
      el("title", {}, `layer ${i}`),
      box(x, y, mixer && mixers[mixer.kind], mixer?.kind === "attention" && mixer.window !== null),
      box(x, y + cell.height, channelMixer && channelMixers[channelMixer.kind], false),
    );
  });
  const numbers = Array.from({ length: lines }, (_, line) => el("text", { class: "quiet", x: labelWidth - 6, y: line * lineHeight + cell.height + 4, "text-anchor": "end" }, line * inLine));
  const more = rest > 0 ? [el("text", { class: "quiet", x: labelWidth, y: lines * lineHeight + 8 }, `and ${rest} more`)] : [];
  return svg(width, lines * lineHeight - 8 + (rest > 0 ? 22 : 0), `The ${layers.length} layers of ${name}`, numbers, boxes, more);
}

/** What the letters stand for. */
export const stackLegend: readonly Look[] = [...Object.values(mixers), { letter: "a", colour: "attention", meaning: "attention with a window" }, ...Object.values(channelMixers)];

function box(x: number, y: number, look: Look | null, lowerCase: boolean): Markup {
  const place = { x: x + cell.gap / 2, y: y + cell.gap / 2, width: cell.width - cell.gap, height: cell.height - cell.gap, rx: 2.5 };
  if (!look) return el("rect", { ...place, fill: "none", stroke: paint("line"), "stroke-dasharray": "2 2" });
  return el(
    "g",
    {},
    el("rect", { ...place, fill: paint(look.colour) }),
    el("text", { class: "cell", x: x + cell.width / 2, y: y + cell.height / 2 + 4, "text-anchor": "middle" }, lowerCase ? look.letter.toLowerCase() : look.letter),
  );
}

/** As many layers in a line as make periods stand below each other. */
function lineLength(keys: readonly string[]): number {
  for (let period = 2; period <= mostInLine; period++)
    if (keys.length % period === 0 && keys.every((key, i) => key === keys[i % period])) return keys.every((key) => key === keys[0]) ? mostInLine : period * Math.floor(mostInLine / period);
  return mostInLine;
}
