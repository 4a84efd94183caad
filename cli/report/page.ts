import { formatBinaryBytes, formatBytes, formatCount } from "../../core/plan/sizes.js";
import { type Plan, plan as planFor } from "../../core/plan/plan.js";
import type { Layout } from "../../dsl/resolve.js";
import { describeChannelMixer, describeMixer } from "../describe-layer.js";
import { formatCount as formatParameters, formatInteger } from "../format.js";
import { byteRows, durationText, largestText, operationsText, rateText } from "../plan-rows.js";
import { type PlannedModel, planRecord } from "../planning.js";
import { type Bar, barsFigure } from "./bars-figure.js";
import { type Colour, colourSheet, figureSheet, paint, seriesColour } from "./colours.js";
import { lineDash, linesFigure } from "./lines-figure.js";
import { el, type Markup, svg, verbatim } from "./markup.js";
import { memoryFigure, memoryKinds } from "./memory-figure.js";
import { pageSheet } from "./page-sheet.js";
import { stackFigure, stackLegend } from "./stack-figure.js";

/** A page that says of some models what their plans say, complete in itself. */
export function reportPage(planned: readonly PlannedModel[]): string {
  const names = planned.map(({ model }) => model.name);
  const contexts = contextRange(planned);
  const curves = planned.map((p) => curve(p, contexts));
  const data = JSON.stringify({ schemaVersion: 1, plans: planned.map(planRecord) }).replaceAll("<", "\\u003c");
  const page = el(
    "html",
    { lang: "en" },
    el(
      "head",
      {},
      el("meta", { charset: "utf-8" }),
      el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }),
      el("meta", { name: "color-scheme", content: "light dark" }),
      // An empty icon: without one, browsers ask the server for it.
      verbatim('<link rel="icon" href="data:,">'),
      el("title", {}, names.join(", ")),
      el("style", {}, verbatim(colourSheet() + figureSheet + pageSheet)),
    ),
    el(
      "body",
      { class: planned.length === 1 ? "single" : undefined },
      el(
        "main",
        {},
        header(planned),
        section("Verdict", note("GB is 10⁹ bytes, GiB is 2³⁰ bytes."), grid(planned.map(verdictCard))),
        section("Layers", stackKey(), grid(planned.map(layersPanel))),
        section(
          "Memory over context",
          note("What each kind of memory takes, on the scale of all panels. The dashed line is the budget; the dot on it is the largest context that fits, the dotted line the context that was planned for."),
          legend(memoryKinds.map(({ name, colour }) => ({ name, colour }))),
          grid(planned.map((p, i) => panel(p.model.name, memoryFigure({ plans: curves[i] ?? [], plan: p.plan, contexts, top: memoryTop(planned, curves) })))),
        ),
        section("Parameters", legend(parameterParts), grid([panel("total, and active for one token", parametersFigure(planned))])),
        wideSection(
          "Cost per token",
          note(`Bounds of the ${planned[0]?.plan.device} profile for one decode step at the planned context and batch: what memory traffic and arithmetic allow at best.`),
          grid([
            panel("bytes moved per step", legend(trafficParts), trafficFigure(planned)),
            panel("operations per step", legend(operationParts), operationsFigure(planned)),
            panel("time per decoded token over context", lineLegend(names), timeFigure(planned, curves, contexts)),
          ]),
        ),
        wideSection("Numbers", bytesTable(planned), answersTable(planned), ...planned.filter(({ plan }) => plan.reliefs.length > 0).map(reliefTable)),
        wideSection("Planned with", assumptionsTable(planned)),
      ),
      el("script", { type: "application/json", id: "plans" }, verbatim(data)),
    ),
  );
  return `<!doctype html>\n${page.markup}\n`;
}

const section = (title: string, ...content: readonly Markup[]): Markup => el("section", {}, el("h2", {}, title), content);
/** A section that takes the whole width also where two could stand side by side. */
const wideSection = (title: string, ...content: readonly Markup[]): Markup => el("section", { class: "wide" }, el("h2", {}, title), content);
const note = (text: string): Markup => el("p", { class: "note" }, text);
const grid = (panels: readonly Markup[]): Markup => el("div", { class: "grid" }, panels);
const panel = (title: string, ...content: readonly Markup[]): Markup => el("figure", {}, el("figcaption", {}, title), content);

interface Part {
  readonly name: string;
  readonly colour: Colour;
}

const legend = (parts: readonly Part[]): Markup => el("ul", { class: "legend" }, parts.map(({ name, colour }) => el("li", {}, el("span", { class: "swatch", style: `background:${paint(colour)}` }), name)));

const lineLegend = (names: readonly string[]): Markup =>
  el(
    "ul",
    { class: "legend" },
    names.map((name, i) => el("li", {}, el("span", { class: "stroke" }, svg(22, 8, name, el("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: paint(seriesColour(i)), "stroke-width": 2.2, "stroke-dasharray": lineDash(i) }))), name)),
  );

const stackKey = (): Markup =>
  el(
    "ul",
    { class: "legend" },
    stackLegend.map(({ letter, colour, meaning }) => el("li", {}, el("span", { class: "letter", style: `background:${paint(colour)}` }, letter), meaning)),
    el("li", {}, "above the mixer of a layer, below its channel mixer"),
  );

/** From 1K to what lies well beyond the planned contexts, and to the largest one that fits where that is not much farther. */
function contextRange(planned: readonly PlannedModel[]): readonly [number, number] {
  const powerAbove = (n: number) => 2 ** Math.ceil(Math.log2(n));
  const most = Math.max(...planned.map(({ plan }) => plan.context));
  const largest = Math.max(...planned.map(({ plan }) => plan.budget.maxContext));
  const high = powerAbove(Math.min(Math.max(2 * most, largest), 16 * most, 2 ** 30));
  return [Math.max(1, Math.min(1024, high / 16)), high];
}

function curve({ model, options }: PlannedModel, [low, high]: readonly [number, number]): readonly Plan[] {
  const steps = 2 * Math.log2(high / low);
  const contexts = new Set([...Array.from({ length: Math.round(steps) + 1 }, (_, i) => Math.round(low * 2 ** (i / 2))), options.chunk, options.context]);
  return [...contexts]
    .filter((context) => context >= low && context <= high)
    .sort((a, b) => a - b)
    .map((context) => planFor(model, { ...options, context }));
}

/** Room for everything, as long as the budget stays readable. */
function memoryTop(planned: readonly PlannedModel[], curves: readonly (readonly Plan[])[]): number {
  const most = Math.max(...curves.flat().map(({ bytes }) => bytes.total));
  const budget = Math.max(...planned.map(({ plan }) => plan.budget.bytes));
  return Math.min(Math.max(most * 1.04, budget * 1.15), budget * 2.5);
}

function header(planned: readonly PlannedModel[]): Markup {
  const [first] = planned;
  const shared = first ? `${first.plan.device}, budget ${formatBytes(first.plan.budget.bytes)} (${formatBinaryBytes(first.plan.budget.bytes)}), batch ${first.plan.batch}, prefill in chunks of ${formatCount(first.options.chunk)}` : "";
  return el("header", {}, el("h1", {}, planned.map(({ model }) => model.name).join(", ")), el("p", { class: "note" }, `Memory and cost on ${shared}.`));
}

function verdictCard({ model, plan, unchunked }: PlannedModel): Markup {
  const { bytes, budget, parameters, roofline } = plan;
  const difference = Math.abs(budget.bytes - bytes.total);
  const facts: readonly (readonly [string, string])[] = [
    ["needs", `${formatBytes(bytes.total)} (${formatBinaryBytes(bytes.total)}) at ${formatInteger(plan.context)} tokens`],
    ["largest context", largestText(budget.maxContext, "tokens")],
    ["largest batch", largestText(budget.maxBatch, "sequences")],
    ...(unchunked ? [["prefilled at once", `${formatBytes(unchunked.total)}, ${unchunked.fits ? "fits" : "does not fit"}`] as const] : []),
    ["parameters", `${formatParameters(parameters.total)}, ${formatParameters(parameters.active)} active`],
    ["decode at best", rateText(roofline.decodeTokensPerSecond)],
    ["prefill at best", durationText(roofline.prefillSeconds)],
  ];
  return el(
    "article",
    { class: "card" },
    el("h3", {}, model.name),
    el("p", { class: budget.fits ? "verdict good" : "verdict bad" }, budget.fits ? `Fits, ${formatBytes(difference)} left` : `Does not fit, ${formatBytes(difference)} over`),
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
  );
}

function layersPanel({ layout }: PlannedModel): Markup {
  return panel(
    `${layout.name}: ${layout.layers.length} layers`,
    stackFigure(layout),
    el("ul", { class: "layers" }, layerKinds(layout).map(({ count, text }) => el("li", {}, el("b", {}, `${count} ×`), ` ${text}`))),
  );
}

/** Equal layers counted, in the order of their first. */
function layerKinds({ layers }: Layout): readonly { readonly count: number; readonly text: string }[] {
  const kinds = new Map<string, { count: number; readonly text: string }>();
  for (const layer of layers) {
    const key = JSON.stringify(layer);
    const kind = kinds.get(key) ?? { count: 0, text: [layer.mixer && describeMixer(layer.mixer), layer.channelMixer && describeChannelMixer(layer.channelMixer)].filter(Boolean).join(" + ") };
    kind.count++;
    kinds.set(key, kind);
  }
  return [...kinds.values()];
}

const parameterParts: readonly Part[] = [
  { name: "active for one token", colour: "weights" },
  { name: "the rest", colour: "overhead" },
];
const trafficParts: readonly Part[] = [
  { name: "weights", colour: "weights" },
  { name: "KV cache", colour: "kv-cache" },
  { name: "conv and SSM state", colour: "state" },
];
const operationParts: readonly Part[] = [
  { name: "experts", colour: "moe" },
  { name: "other matrix products", colour: "weights" },
  { name: "attention", colour: "attention" },
  { name: "scan and convolution", colour: "mamba" },
];

const partsOf = (parts: readonly Part[], values: readonly number[]): Bar["parts"] => parts.map((part, i) => ({ ...part, value: values[i] ?? 0 }));

const parametersFigure = (planned: readonly PlannedModel[]): Markup =>
  barsFigure(
    "Parameters, total and active",
    planned.map(({ model: { name, parameters } }) => ({
      label: name,
      parts: partsOf(parameterParts, [parameters.active, parameters.total - parameters.active]),
      text: `${formatParameters(parameters.active)} of ${formatParameters(parameters.total)}`,
    })),
  );

const trafficFigure = (planned: readonly PlannedModel[]): Markup =>
  barsFigure(
    "Bytes moved per decode step",
    planned.map(({ model, plan: { roofline } }) => {
      const { weights, kvCache, state, total } = roofline.decode.bytes;
      return { label: model.name, parts: partsOf(trafficParts, [weights, kvCache, state]), text: formatBytes(total) };
    }),
  );

const operationsFigure = (planned: readonly PlannedModel[]): Markup =>
  barsFigure(
    "Operations per decode step",
    planned.map(({ model, plan: { roofline } }) => {
      const { gemm, attention, scan, experts, total } = roofline.decode.operations;
      return { label: model.name, parts: partsOf(operationParts, [experts, gemm - experts, attention, scan]), text: operationsText(total) };
    }),
  );

const timeFigure = (planned: readonly PlannedModel[], curves: readonly (readonly Plan[])[], contexts: readonly [number, number]): Markup =>
  linesFigure(
    "Time per decoded token over context length",
    planned.map(({ model }, i) => ({ label: model.name, points: (curves[i] ?? []).map(({ context, roofline }) => ({ context, value: 1 / roofline.decodeTokensPerSecond })) })),
    contexts,
    (seconds) => (seconds < 1 ? `${Number((seconds * 1000).toPrecision(3))} ms` : `${seconds} s`),
  );

const scrolling = (table: Markup): Markup => el("div", { class: "scroll" }, table);
const headRow = (first: string, names: readonly string[]): Markup => el("tr", {}, el("th", { scope: "col" }, first), names.map((name) => el("th", { scope: "col" }, name)));

function bytesTable(planned: readonly PlannedModel[]): Markup {
  const rows = byteRows(planned).map(({ label, level, bytes }) =>
    el(
      "tr",
      { class: level },
      el("th", { scope: "row" }, label),
      bytes.map((b, i) =>
        b === null || b === 0
          ? el("td", {}, "–")
          : el("td", { "data-model": planned[i]?.model.name, "data-row": label, "data-bytes": String(b), title: `${formatInteger(b)} bytes` }, formatBytes(b), el("span", { class: "quiet" }, ` ${formatBinaryBytes(b)}`)),
      ),
    ),
  );
  return scrolling(el("table", { class: "bytes" }, el("thead", {}, headRow("memory", planned.map(({ model }) => model.name))), el("tbody", {}, rows)));
}

function answersTable(planned: readonly PlannedModel[]): Markup {
  const rows: readonly (readonly [string, (planned: PlannedModel) => string])[] = [
    ["parameters", ({ plan }) => formatInteger(plan.parameters.total)],
    ["active parameters", ({ plan }) => formatInteger(plan.parameters.active)],
    ["largest context at this batch", ({ plan }) => largestText(plan.budget.maxContext, "tokens")],
    ["largest batch at this context", ({ plan }) => largestText(plan.budget.maxBatch, "sequences")],
    ["peak of prefill at", ({ plan }) => plan.prefill.at],
    ["peak of decode at", ({ plan }) => plan.decode.at],
    ["decode, at best", ({ plan: { roofline } }) => `${rateText(roofline.decodeTokensPerSecond)}, ${roofline.decode.binds} binds`],
    ["bytes moved per decode step", ({ plan: { roofline } }) => formatBytes(roofline.decode.bytes.total)],
    ["operations per decode step", ({ plan: { roofline } }) => operationsText(roofline.decode.operations.total)],
    ["prefill, at best", ({ plan: { roofline } }) => `${durationText(roofline.prefillSeconds)}, ${roofline.prefill.binds} binds`],
    ["operations per prefill", ({ plan: { roofline } }) => operationsText(roofline.prefill.operations.total)],
  ];
  return scrolling(
    el(
      "table",
      {},
      el("thead", {}, headRow("", planned.map(({ model }) => model.name))),
      el("tbody", {}, rows.map(([label, cell]) => el("tr", {}, el("th", { scope: "row" }, label), planned.map((p) => el("td", {}, cell(p)))))),
    ),
  );
}

function reliefTable({ model, plan: { reliefs } }: PlannedModel): Markup {
  return scrolling(
    el(
      "table",
      {},
      el("thead", {}, headRow(`What would have to give in ${model.name}`, ["saves", "then needs", ""])),
      el("tbody", {}, reliefs.map(({ change, saves, total, fits }) => el("tr", {}, el("th", { scope: "row" }, change), [formatBytes(saves), formatBytes(total), fits ? "fits" : "still over"].map((text) => el("td", {}, text))))),
    ),
  );
}

function assumptionsTable(planned: readonly PlannedModel[]): Markup {
  const [first] = planned;
  if (!first) return el("p", {});
  const { device, kvDtype, stateDtype, quantize } = first.options;
  const rows: readonly (readonly [string, string])[] = [
    ...planned.flatMap(({ model, plan, assumed }) => [
      [`context of ${model.name}`, `${formatInteger(plan.context)} tokens (${assumed.context})`] as const,
      [`weights of ${model.name}`, assumed.weights] as const,
    ]),
    ["quantisation", quantize],
    ["state", `KV cache ${kvDtype}, SSM state ${stateDtype}`],
    ["memory bandwidth", `${formatBytes(device.bandwidth.value)}/s: ${device.bandwidth.source}`],
    ["arithmetic", Object.entries(device.matrixRates).map(([dtype, rate]) => `${dtype} ${operationsText(rate.value)}/s: ${rate.source}`).join("; ")],
    ["runtime", `${formatBytes(device.runtime.value)}: ${device.runtime.source}`],
    ...(device.memory ? [["device memory", `${formatBytes(device.memory.value)}: ${device.memory.source}`] as const] : []),
  ];
  return scrolling(el("table", { class: "text" }, el("tbody", {}, rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, value))))));
}
