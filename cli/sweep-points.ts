import { checkedLayout } from "../compiler/lower.js";
import { type Diagnostic, Diagnostics, fail, LayerweaveError } from "../core/diagnostics.js";
import { type Plan, plan } from "../core/plan/plan.js";
import { parseCount } from "../core/plan/sizes.js";
import { cliDiagnostics } from "./diagnostics.js";
import { type Knobs, loadLayout } from "./load-layout.js";
import { contextFor, planSource, type PlanningOptions, settingOf } from "./planning.js";

/** One knob with the values it takes. */
export interface Axis {
  readonly name: string;
  readonly values: readonly number[];
}

/** One combination of knobs, context and batch, with its plan. */
export interface SweepPoint {
  readonly knobs: Knobs;
  readonly plan: Plan;
}

/** Knobs whose layout is invalid, and why. */
export interface InvalidPoint {
  readonly knobs: Knobs;
  readonly diagnostics: readonly Diagnostic[];
}

export interface Sweep {
  readonly axes: readonly Axis[];
  readonly points: readonly SweepPoint[];
  readonly invalid: readonly InvalidPoint[];
}

export interface SweepPointsOptions extends PlanningOptions {
  /** `name=value,value,…` each. */
  readonly knob: readonly string[];
  /** Lists, separated by commas. */
  readonly context?: string;
  readonly batch: string;
  readonly onProgress?: (done: number, total: number) => void;
}

const mostPoints = 20_000;

/**
 * Plans a layout for every combination of its knobs, of the contexts and of the batches. Each combination of knobs is
 * checked as a layout of its own.
 * @throws LayerweaveError what is wrong with the options or the file; when no combination is valid, what is wrong with each.
 */
export async function sweepPoints(file: string, options: SweepPointsOptions): Promise<Sweep> {
  const setting = await settingOf(options);
  const axes = parseKnobs(options.knob);
  const contexts = options.context === undefined ? [undefined] : options.context.split(",");
  for (const context of contexts) if (context !== undefined) parseCount(context, "--context");
  const batches = options.batch.split(",").map((batch) => parseCount(batch, "--batch"));
  const combinations = axes.reduce((count, { values }) => count * values.length, 1);
  const total = combinations * contexts.length * batches.length;
  if (total > mostPoints) fail(cliDiagnostics["too-many-points"], { points: total, most: mostPoints });

  const { model } = await loadLayout(file);
  const read = new Set<string>();
  const points: SweepPoint[] = [];
  const invalid: InvalidPoint[] = [];
  for (const knobs of product(axes)) {
    try {
      const layout = checkedLayout(model(watched(knobs, read)));
      const planned = await planSource({ kind: "layout-file", path: file, layout }, setting, options.dtype);
      for (const asked of contexts)
        for (const batch of batches) points.push({ knobs, plan: plan(planned.model, { ...setting, context: contextFor(planned.model, asked).context, batch }) });
    } catch (error) {
      if (!(error instanceof LayerweaveError)) throw error;
      invalid.push({ knobs, diagnostics: error.diagnostics });
    }
    options.onProgress?.(points.length + invalid.length * contexts.length * batches.length, total);
  }
  const unused = axes.map(({ name }) => name).filter((name) => !read.has(name));
  if (unused.length > 0) fail(cliDiagnostics["unused-knob"], { file, knobs: unused, read: [...read] });
  if (points.length === 0) throw new LayerweaveError(distinct(invalid.flatMap(({ diagnostics }) => diagnostics)));
  return { axes, points, invalid };
}

function parseKnobs(texts: readonly string[]): readonly Axis[] {
  const found = new Diagnostics();
  const axes = texts.map((text): Axis => {
    const bad = (problem: string) => found.report(cliDiagnostics["bad-knob"], { found: text, problem });
    const [, name = "", listed = ""] = /^([^=]*)=(.*)$/.exec(text) ?? [];
    if (!/^[A-Za-z_$][\w$]*$/.test(name)) bad("it has no name before =");
    const values = listed.split(",").map((value) => (value.trim() === "" ? Number.NaN : Number(value)));
    if (!values.every(Number.isFinite)) bad("its values must be numbers, separated by commas");
    else if (new Set(values).size < values.length) bad("a value occurs twice");
    return { name, values };
  });
  axes.forEach(({ name }, i) => {
    if (axes.findIndex((axis) => axis.name === name) < i) found.report(cliDiagnostics["bad-knob"], { found: texts[i] ?? "", problem: `${name} was given before` });
  });
  found.throwIfErrors();
  return axes;
}

function* product(axes: readonly Axis[]): Generator<Knobs> {
  const [first, ...rest] = axes;
  if (!first) return yield {};
  for (const value of first.values) for (const others of product(rest)) yield { [first.name]: value, ...others };
}

/** The knobs, with the names that the layout asks for noted down. */
function watched(knobs: Knobs, read: Set<string>): Knobs {
  return new Proxy(knobs, {
    get: (target, name) => {
      if (typeof name === "string") read.add(name);
      return Reflect.get(target, name) as unknown;
    },
    ownKeys: (target) => {
      // Copied as a whole: what becomes of the copy can't be seen.
      for (const name of Object.keys(target)) read.add(name);
      return Reflect.ownKeys(target);
    },
  });
}

const distinct = (diagnostics: readonly Diagnostic[]): readonly Diagnostic[] => [...new Map(diagnostics.map((d) => [`${d.code} ${d.path} ${d.message}`, d])).values()];
