/** Colours with enough contrast to each other and to the page, by light and by dark. */
const colours = {
  page: ["#ffffff", "#14171c"],
  panel: ["#f5f6f8", "#1d2128"],
  text: ["#1a1d23", "#e8eaee"],
  quiet: ["#5a6270", "#a2abb8"],
  line: ["#d5d9e0", "#363c47"],
  good: ["#1a7f4b", "#5fd39a"],
  bad: ["#c62b2b", "#ff8a80"],
  attention: ["#2f6fd6", "#6ea3f7"],
  mamba: ["#12857a", "#45c2b4"],
  mlp: ["#7d8694", "#7c8696"],
  moe: ["#c76a06", "#f0a04b"],
  weights: ["#41608f", "#7796c8"],
  "kv-cache": ["#d9730d", "#f2a354"],
  state: ["#12857a", "#45c2b4"],
  activations: ["#8a4fc0", "#bd8cec"],
  overhead: ["#98a0ad", "#6d7685"],
  runtime: ["#c3c8d1", "#4a515e"],
  "series-0": ["#2f6fd6", "#6ea3f7"],
  "series-1": ["#d9730d", "#f2a354"],
  "series-2": ["#12857a", "#45c2b4"],
  "series-3": ["#8a4fc0", "#bd8cec"],
  "series-4": ["#b3246b", "#f07db2"],
  "series-5": ["#6b7a0b", "#c0cf4f"],
} as const satisfies Readonly<Record<string, readonly [light: string, dark: string]>>;

export type Colour = keyof typeof colours;

const seriesCount = 6;

/** The colour of the nth of several things that are alike; after six they come round again. */
export const seriesColour = (index: number): Colour => `series-${index % seriesCount}` as Colour;

/** Value of a fill or stroke. */
export const paint = (colour: Colour): string => `var(--${colour})`;

/** Declares the colours for a style sheet. */
export const colourSheet = (): string => {
  const declare = (index: 0 | 1) => Object.entries(colours).map(([name, pair]) => `--${name}:${pair[index]};`).join("");
  return `:root{color-scheme:light dark;${declare(0)}}\n@media (prefers-color-scheme:dark){:root{${declare(1)}}}\n`;
};

/** How text and lines of figures look, in a page and alone. */
export const figureSheet = `
svg{display:block;width:100%;height:auto;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text{font-size:11.5px;fill:var(--text)}
svg text.quiet{fill:var(--quiet)}
svg .axis{stroke:var(--line);stroke-width:1}
svg .budget{stroke:var(--bad);stroke-width:1.6;stroke-dasharray:6 4}
svg text.budget-label{fill:var(--bad);font-weight:600;stroke:var(--panel);stroke-width:3.5px;paint-order:stroke;stroke-dasharray:none}
svg .planned{stroke:var(--text);stroke-width:1;stroke-dasharray:2 3}
svg text.halo{stroke:var(--panel);stroke-width:3.5px;paint-order:stroke}
`;
