import type { Diagnostic } from "../../core/diagnostics.js";
import { overBudget } from "../../core/plan/plan.js";
import { formatBinaryBytes, formatBytes, formatCount } from "../../core/plan/sizes.js";
import { formatCount as formatParameters, formatInteger, formatTable } from "../format.js";
import { byteRows, durationText, largestText, rateText } from "../plan-rows.js";
import { type ContextAndBatch, planAll, type PlannedModel, type PlanningOptions, planRecord } from "../planning.js";
import type { Terminal } from "../terminal.js";

export type PlanCommandOptions = PlanningOptions & ContextAndBatch;

/** Prints what each source needs on a device, side by side. @returns whether all of them fit. */
export async function planSources(terminal: Terminal, paths: readonly string[], options: PlanCommandOptions): Promise<boolean> {
  const { planned, warnings } = await planAll(paths, options);
  const refusals = planned.map(({ plan }) => overBudget(plan)).filter((d): d is Diagnostic => d !== undefined);
  terminal.report(warnings);
  terminal.write(planText(planned));
  terminal.report(refusals);
  const plans = planned.map(planRecord);
  terminal.result({ ...(plans.length === 1 ? plans[0] : {}), plans, diagnostics: [...warnings, ...refusals] });
  return refusals.length === 0;
}

function planText(planned: readonly PlannedModel[]): string {
  return [bytesTable(planned), answers(planned), ...planned.filter(({ plan }) => plan.reliefs.length > 0).map(reliefText), assumptions(planned)].join("\n");
}

/** One model in both units; several in GB. */
function bytesTable(planned: readonly PlannedModel[]): string {
  const [first] = planned;
  const single = planned.length === 1 && first;
  const cells = ({ bytes }: { readonly bytes: readonly (number | null)[] }) =>
    single ? [formatBytes(bytes[0] ?? 0), formatBinaryBytes(bytes[0] ?? 0)] : bytes.map((b) => (b === null || b === 0 ? "–" : formatBytes(b)));
  const head = single ? [`${single.model.name} on ${single.plan.device}`, "GB = 10⁹", "GiB = 2³⁰"] : [`on ${first?.plan.device}, GB = 10⁹`, ...planned.map(({ model }) => model.name)];
  return formatTable([head, ...byteRows(planned).map((row) => [`${row.level === "part" ? "  " : ""}${row.label}`, ...cells(row)])], { right: head.map((_, i) => i).slice(1) });
}

function answers(planned: readonly PlannedModel[]): string {
  const verdict = ({ plan: { bytes, budget } }: PlannedModel) => (budget.fits ? `fits, ${formatBytes(budget.bytes - bytes.total)} left` : `does NOT fit, ${formatBytes(bytes.total - budget.bytes)} over`);
  const rows: readonly (readonly [string, (planned: PlannedModel) => string])[] = [
    ["verdict", verdict],
    ["context × batch", ({ plan }) => `${formatInteger(plan.context)} × ${formatInteger(plan.batch)}`],
    ["largest context at this batch", ({ plan }) => largestText(plan.budget.maxContext, "tokens")],
    ["largest batch at this context", ({ plan }) => largestText(plan.budget.maxBatch, "sequences")],
    ["total if prefilled at once", ({ unchunked, plan }) => (unchunked ? `${formatBytes(unchunked.total)}, ${unchunked.fits ? "fits" : "does not fit"}` : formatBytes(plan.bytes.total))],
    ["parameters", ({ plan: { parameters } }) => `${formatParameters(parameters.total)}, ${formatParameters(parameters.active)} active`],
    ["decode, at best", ({ plan: { roofline } }) => `${rateText(roofline.decodeTokensPerSecond)} (${roofline.decode.binds} binds)`],
    ["prefill, at best", ({ plan: { roofline } }) => `${durationText(roofline.prefillSeconds)} (${roofline.prefill.binds} binds)`],
  ];
  const head = planned.length > 1 ? [["", ...planned.map(({ model }) => model.name)]] : [];
  return formatTable([...head, ...rows.map(([label, cell]) => [label, ...planned.map(cell)])]);
}

function reliefText({ model, plan: { reliefs } }: PlannedModel): string {
  return `what would have to give in ${model.name}\n${formatTable(
    reliefs.map(({ change, saves, total, fits }) => [change, `saves ${formatBytes(saves)}`, `total ${formatBytes(total)}`, fits ? "fits" : "still over"]),
    { indent: "  " },
  )}`;
}

function assumptions(planned: readonly PlannedModel[]): string {
  const [first] = planned;
  if (!first) return "";
  const { device, kvDtype, stateDtype, quantize } = first.options;
  const own = (of: (planned: PlannedModel) => string): string => {
    const texts = planned.map(of);
    return new Set(texts).size === 1 ? (texts[0] ?? "") : planned.map(({ model }, i) => `${model.name}: ${texts[i]}`).join("; ");
  };
  return `planned with\n${formatTable(
    [
      ["context", own(({ plan, assumed }) => `${formatCount(plan.context)} (${assumed.context})`)],
      ["prefill", own(({ plan }) => `${formatCount(plan.chunk)} tokens at once`)],
      ["weights", own(({ assumed }) => assumed.weights) + (quantize === "none" ? "" : `; ${quantize === "int8" ? "int8 linear layers" : "int8 experts and MLPs"}`)],
      ["state", `KV cache ${kvDtype}, SSM state ${stateDtype}`],
      ["runtime", `${formatBytes(device.runtime.value)}: ${device.runtime.source}`],
      ["rates", `${formatBytes(device.bandwidth.value)}/s: ${device.bandwidth.source}`],
    ],
    { indent: "  " },
  )}`;
}
