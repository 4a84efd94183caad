import { mostTokens } from "../core/plan/sizes.js";
import type { PlannedModel } from "./planning.js";

/** One line of a plan's account, for each of several models; null where a model has nothing of the kind. */
export interface ByteRow {
  readonly label: string;
  readonly level: "item" | "part" | "sum";
  readonly bytes: readonly (number | null)[];
}

/** The account of several plans side by side: every item with its parts, the sum, and the budget. Items that none has are left out. */
export function byteRows(planned: readonly PlannedModel[]): readonly ByteRow[] {
  const row = (label: string, level: ByteRow["level"], of: (planned: PlannedModel) => number | null): ByteRow => ({ label, level, bytes: planned.map(of) });
  const bytes = (key: keyof PlannedModel["plan"]["bytes"]) => (p: PlannedModel) => p.plan.bytes[key];
  const all: readonly ByteRow[] = [
    row("weights", "item", bytes("weights")),
    ...weightNames(planned).map((name) => row(name, "part", ({ plan }) => plan.weights.find((item) => weightName(item) === name)?.bytes ?? null)),
    row("KV cache", "item", bytes("kvCache")),
    row("conv state", "item", bytes("convState")),
    row("SSM state", "item", bytes("ssmState")),
    row("second state buffers", "item", bytes("stateCopies")),
    row("converted weights", "item", bytes("weightCopies")),
    row("activations", "item", bytes("activations")),
    row("logits", "item", bytes("logits")),
    row("kernel workspace", "item", bytes("workspace")),
    row("allocator rounding", "item", bytes("allocator")),
    row("runtime", "item", bytes("runtime")),
    row("total", "sum", bytes("total")),
    row("budget", "sum", ({ plan }) => plan.budget.bytes),
  ];
  return all.filter((r) => r.level === "sum" || r.bytes.some((b) => b !== null && b > 0));
}

const weightName = ({ kind, dtype }: PlannedModel["plan"]["weights"][number]) => `${kind} ${dtype}`;

/** Largest first, of all models together. */
function weightNames(planned: readonly PlannedModel[]): readonly string[] {
  const sums = new Map<string, number>();
  for (const item of planned.flatMap(({ plan }) => plan.weights)) sums.set(weightName(item), (sums.get(weightName(item)) ?? 0) + item.bytes);
  return [...sums].sort(([, a], [, b]) => b - a).map(([name]) => name);
}

/** "65,536 tokens", with the ends named. */
export function largestText(count: number, what: "tokens" | "sequences"): string {
  if (count === 0) return "none";
  return count >= mostTokens ? `no limit below 2³¹ ${what}` : `${count.toLocaleString("en-US")} ${count === 1 ? what.slice(0, -1) : what}`;
}

/** "812 tokens/s", "0.43 tokens/s". */
export const rateText = (perSecond: number): string => `${threeDigits(perSecond)} tokens/s`;

/** "1 h 02 min", "3.4 s", "12 ms". */
export function durationText(seconds: number): string {
  if (seconds < 1) return `${threeDigits(seconds * 1000)} ms`;
  if (seconds < 120) return `${threeDigits(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60).toLocaleString("en-US")} h ${String(minutes % 60).padStart(2, "0")} min`;
}

/** "1.23 T", "456 G": operations. */
export function operationsText(operations: number): string {
  const units = ["", " K", " M", " G", " T", " P"];
  const unit = Math.min(units.length - 1, operations < 1000 ? 0 : Math.floor(Math.log10(operations) / 3));
  return `${threeDigits(operations / 1000 ** unit)}${units[unit]}`;
}

const threeDigits = (value: number): string => (value >= 100 ? value.toLocaleString("en-US", { maximumFractionDigits: 0 }) : value.toPrecision(3));
