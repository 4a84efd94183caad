import { extname } from "node:path";
import { fail } from "../../core/diagnostics.js";
import { formatBytes, formatCount } from "../../core/plan/sizes.js";
import { cliDiagnostics } from "../diagnostics.js";
import { formatCount as formatParameters, formatTable } from "../format.js";
import type { Knobs } from "../load-layout.js";
import { durationText, largestText, rateText } from "../plan-rows.js";
import { sweepFigure } from "../report/sweep-figure.js";
import { type InvalidPoint, type Sweep, type SweepPoint, type SweepPointsOptions, sweepPoints } from "../sweep-points.js";
import type { Terminal } from "../terminal.js";
import { writeWhole } from "../write-whole.js";

export interface SweepOptions extends Omit<SweepPointsOptions, "onProgress"> {
  readonly csv?: boolean;
  /** Picture to write. */
  readonly svg?: string;
}

/** Plans a layout over its knobs. Points that are invalid layouts are listed; they end the command only when all are. */
export async function sweep(terminal: Terminal, file: string, { csv = false, svg, ...options }: SweepOptions): Promise<void> {
  if (svg !== undefined && extname(svg) !== ".svg") fail(cliDiagnostics["wrong-extension"], { file: svg, expected: ".svg" });
  const swept = await sweepPoints(file, { ...options, onProgress: (done, total) => terminal.status(`${done} of ${total} points`) });
  terminal.clearStatus();
  if (svg !== undefined) await writeWhole(svg, sweepFigure(swept), true);
  terminal.write(csv ? csvText(swept) : tableText(swept));
  if (swept.invalid.length > 0) terminal.note(invalidText(swept.invalid));
  if (svg !== undefined) terminal.note(`Wrote ${svg}.`);
  const [first] = swept.points;
  terminal.result({
    layout: file,
    device: first?.plan.device,
    axes: swept.axes,
    points: swept.points.map(({ knobs, plan }) => ({ knobs, ...plan })),
    invalid: swept.invalid,
    picture: svg ?? null,
  });
}

const state = ({ plan: { bytes } }: SweepPoint) => bytes.convState + bytes.ssmState + bytes.stateCopies;
const working = ({ plan: { bytes } }: SweepPoint) => bytes.activations + bytes.logits + bytes.workspace + bytes.allocator;

interface Column {
  readonly title: string;
  /** In CSV. */
  readonly name: string;
  readonly value: (point: SweepPoint) => number | boolean;
  readonly text: (point: SweepPoint) => string;
}

const bytesColumn = (title: string, name: string, value: (point: SweepPoint) => number): Column => ({ title, name, value, text: (point) => formatBytes(value(point)) });

function columns({ axes }: Sweep): readonly Column[] {
  return [
    ...axes.map(({ name }): Column => ({ title: name, name, value: ({ knobs }) => knobs[name] ?? Number.NaN, text: ({ knobs }) => String(knobs[name]) })),
    { title: "context", name: "context", value: ({ plan }) => plan.context, text: ({ plan }) => formatCount(plan.context) },
    { title: "batch", name: "batch", value: ({ plan }) => plan.batch, text: ({ plan }) => String(plan.batch) },
    { title: "parameters", name: "parameters", value: ({ plan }) => plan.parameters.total, text: ({ plan }) => formatParameters(plan.parameters.total) },
    { title: "active", name: "activeParameters", value: ({ plan }) => plan.parameters.active, text: ({ plan }) => formatParameters(plan.parameters.active) },
    bytesColumn("weights", "weightBytes", ({ plan }) => plan.bytes.weights + plan.bytes.weightCopies),
    bytesColumn("KV cache", "kvCacheBytes", ({ plan }) => plan.bytes.kvCache),
    bytesColumn("state", "stateBytes", state),
    bytesColumn("activations", "activationBytes", working),
    bytesColumn("total", "totalBytes", ({ plan }) => plan.bytes.total),
    { title: "fits", name: "fits", value: ({ plan }) => plan.budget.fits, text: ({ plan }) => (plan.budget.fits ? "yes" : "no") },
    { title: "largest context", name: "maxContext", value: ({ plan }) => plan.budget.maxContext, text: ({ plan }) => largestText(plan.budget.maxContext, "tokens") },
    { title: "decode", name: "decodeTokensPerSecond", value: ({ plan }) => plan.roofline.decodeTokensPerSecond, text: ({ plan }) => rateText(plan.roofline.decodeTokensPerSecond) },
    { title: "prefill", name: "prefillSeconds", value: ({ plan }) => plan.roofline.prefillSeconds, text: ({ plan }) => durationText(plan.roofline.prefillSeconds) },
  ];
}

function tableText(swept: Sweep): string {
  const shown = columns(swept);
  const [first] = swept.points;
  const head = first ? `${first.plan.device}, budget ${formatBytes(first.plan.budget.bytes)} (GB = 10⁹); decode and prefill at best\n` : "";
  return head + formatTable([shown.map(({ title }) => title), ...swept.points.map((point) => shown.map(({ text }) => text(point)))], { right: shown.map((_, i) => i) });
}

function csvText(swept: Sweep): string {
  const shown = columns(swept);
  return [shown.map(({ name }) => name), ...swept.points.map((point) => shown.map(({ value }) => value(point)))].map((row) => `${row.join(",")}\n`).join("");
}

const knobsText = (knobs: Knobs): string =>
  Object.entries(knobs)
    .map(([name, value]) => `${name}=${value}`)
    .join(" ");

function invalidText(invalid: readonly InvalidPoint[]): string {
  const lines = invalid.flatMap(({ knobs, diagnostics }) => diagnostics.map(({ code, message }) => `  ${knobsText(knobs)}: ${code}: ${message}`));
  return `${invalid.length === 1 ? "One combination is" : `${invalid.length} combinations are`} no valid layout:\n${lines.join("\n")}`;
}
