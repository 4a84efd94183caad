import { readFile } from "node:fs/promises";
import { extname } from "node:path";
import { allParameters } from "../compiler/ir/block.js";
import { toBlocks } from "../compiler/lower.js";
import { planModel, profileLayout } from "../compiler/passes/profile-model.js";
import { targetNamed } from "../compiler/targets/index.js";
import { portable } from "../compiler/targets/portable.js";
import type { Target } from "../compiler/targets/target.js";
import { bindCheckpoint } from "../compiler/weights/bind.js";
import { openSafetensors } from "../compiler/weights/safetensors.js";
import { type Diagnostic, Diagnostics, fail, LayerweaveError } from "../core/diagnostics.js";
import { bytesPerElement, type StorageDtype } from "../core/dtype.js";
import { type Device, deviceNamed, parseDevice } from "../core/plan/devices.js";
import { type PlanModel, planModelOf } from "../core/plan/model.js";
import { plan, type Plan, type PlanOptions } from "../core/plan/plan.js";
import { formatCount, parseBytes, parseCount } from "../core/plan/sizes.js";
import type { Quantization } from "../core/plan/weights.js";
import type { Layout } from "../dsl/resolve.js";
import { cliDiagnostics } from "./diagnostics.js";
import { hasWeights, openSource, type Source, type SourceOptions } from "./source.js";

/** What `plan`, `sweep` and `report` have in common, as it is typed. */
export interface PlanningOptions extends SourceOptions {
  readonly chunk?: string;
  readonly quantize: Quantization;
  readonly dtype?: StorageDtype;
  readonly kvDtype?: StorageDtype;
  readonly stateDtype?: StorageDtype;
  readonly budget?: string;
  /** Name of a profile, or a JSON file with one. */
  readonly device: string;
}

export interface ContextAndBatch {
  readonly context?: string;
  readonly batch: string;
}

/** Everything of a plan that does not depend on the model, with nothing left open but the budget, which the device may know. */
export type Setting = Required<Omit<PlanOptions, "context" | "batch" | "budget">> & Pick<PlanOptions, "budget">;

/** Context of a model that states none. */
const usualContext = 8192;

/** Tokens of one prefill run: what servers on a GPU feed at once, and what `layerweave run` does. */
const usualChunk = { kernels: 8192, "cpu-kernels": 512, bodies: 512 } as const;

/**
 * The setting that the options ask for, with everything they leave open decided.
 * @throws LayerweaveError `plan/bad-count`, `plan/bad-bytes`, `plan/unknown-device`, `plan/bad-device-profile`, `cli/source-unreadable`
 */
export async function settingOf({ chunk, quantize, kvDtype, stateDtype, budget, device: wanted }: PlanningOptions): Promise<Setting> {
  const device = await openDevice(wanted);
  return {
    device,
    quantize,
    chunk: chunk === undefined ? usualChunk[device.execution] : parseCount(chunk, "--chunk"),
    kvDtype: kvDtype ?? (device.execution === "bodies" ? "float32" : device.computeDtype),
    stateDtype: stateDtype ?? "float32",
    ...(budget === undefined ? {} : { budget: parseBytes(budget, "--budget") }),
  };
}

async function openDevice(wanted: string): Promise<Device> {
  if (extname(wanted) !== ".json") return deviceNamed(wanted);
  const text = await readFile(wanted, "utf8").catch((error: Error) => fail(cliDiagnostics["source-unreadable"], { source: wanted, problem: error.message }));
  return parseDevice(text, wanted);
}

/** The context to plan for, and why that one. */
export function contextFor({ contextLength }: Pick<PlanModel, "contextLength">, asked: string | undefined): { readonly context: number; readonly why: string } {
  if (asked !== undefined) {
    const context = parseCount(asked, "--context");
    const beyond = contextLength !== null && context > contextLength ? `, beyond the ${formatCount(contextLength)} tokens that the model was made for` : "";
    return { context, why: `as asked${beyond}` };
  }
  return contextLength === null ? { context: usualContext, why: "assumed; the model states no context length" } : { context: contextLength, why: "the model's context length" };
}

export interface PlannedSource {
  readonly model: PlanModel;
  /** Where the storage types of its weights are from. */
  readonly weightsFrom: string;
}

/** What a model is compiled for to run on a device: our kernels on a card compute in 16 bits. */
function targetFor({ execution, computeDtype }: Device): Target {
  return execution === "kernels" && computeDtype !== "float32" ? targetNamed("cuda", computeDtype) : portable;
}

/**
 * What the planner needs of a source. Weights count as they are stored: in a compiled folder and in a checkpoint with
 * weights as these say, in a layout in the type that the device computes in. `dtype` stores matrices otherwise.
 */
export async function planSource(source: Source, { device, quantize }: Pick<Setting, "device" | "quantize">, dtype: StorageDtype | undefined): Promise<PlannedSource> {
  const target = targetFor(device);
  if (source.kind === "compiled" && dtype === undefined) {
    const compiled = planModelOf(source.manifest);
    const asCompiled = quantize === "none" || compiled.weights.some((weight) => weight.dtype === "int8");
    return { model: asCompiled ? compiled : { ...compiled, profile: profileLayout(source.layout, target, quantize) }, weightsFrom: "as compiled" };
  }
  const model = planModel(source.layout, target, dtype ?? device.computeDtype, quantize);
  const assumed = { model, weightsFrom: dtype === undefined ? `${device.computeDtype}, which ${device.name} computes in` : `${dtype}, as asked` };
  if (source.kind !== "checkpoint" || !(await hasWeights(source.path))) return assumed;
  const { checkpoint } = source;
  const { tensors } = bindCheckpoint(allParameters(toBlocks(source.layout, portable)), await openSafetensors(checkpoint.folder), checkpoint.importer, source.layout);
  const weights = model.weights.map((weight) => {
    const stored = (weight.matrix ? dtype : undefined) ?? tensors.get(weight.name)?.dtype ?? "float32";
    return { ...weight, dtype: stored, bytes: weight.shape.reduce((a, b) => a * b, bytesPerElement[stored]) };
  });
  return { model: { ...model, weights }, weightsFrom: dtype === undefined ? "as in the checkpoint" : assumed.weightsFrom };
}

/** A source with its plan, and what was decided for it. */
export interface PlannedModel {
  readonly source: string;
  readonly layout: Layout;
  readonly model: PlanModel;
  readonly options: Setting & Pick<PlanOptions, "context" | "batch">;
  readonly plan: Plan;
  /** Bytes in all when the whole context is prefilled at once; null where the plan does that. */
  readonly unchunked: { readonly total: number; readonly fits: boolean } | null;
  /** What the plan rests on, and why. */
  readonly assumed: { readonly context: string; readonly weights: string };
}

/**
 * Plans sources in the same setting.
 * @throws LayerweaveError with what is wrong with any of them.
 */
export async function planAll(paths: readonly string[], options: PlanningOptions & ContextAndBatch): Promise<{ readonly planned: readonly PlannedModel[]; readonly warnings: readonly Diagnostic[] }> {
  const setting = await settingOf(options);
  const batch = parseCount(options.batch, "--batch");
  const found = new Diagnostics();
  const warnings: Diagnostic[] = [];
  const planned: PlannedModel[] = [];
  for (const path of paths) {
    try {
      const source = await openSource(path, options);
      if (source.kind === "checkpoint") warnings.push(...source.checkpoint.warnings);
      const { model, weightsFrom } = await planSource(source, setting, options.dtype);
      const { context, why } = contextFor(model, options.context);
      const chosen = { ...setting, context, batch };
      const whole = setting.chunk < context ? plan(model, { ...chosen, chunk: context }) : undefined;
      planned.push({
        source: path,
        layout: source.layout,
        model,
        options: chosen,
        plan: plan(model, chosen),
        unchunked: whole ? { total: whole.bytes.total, fits: whole.budget.fits } : null,
        assumed: { context: why, weights: weightsFrom },
      });
    } catch (error) {
      if (!(error instanceof LayerweaveError)) throw error;
      found.add(error.diagnostics);
    }
  }
  found.throwIfErrors();
  return { planned, warnings };
}

/** What `--json` and reports carry of a plan. */
export function planRecord({ source, plan, unchunked, options: { kvDtype, stateDtype }, assumed }: PlannedModel) {
  return { source, ...plan, kvDtype, stateDtype, unchunkedPrefill: unchunked, assumed };
}
