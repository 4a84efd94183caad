import { availableParallelism } from "node:os";
import { fail, invariant } from "../../core/diagnostics.js";
import type { Dtype } from "../../core/dtype.js";
import { planModelOf } from "../../core/plan/model.js";
import { plan, type PlanBytes } from "../../core/plan/plan.js";
import type { Bound } from "../../core/plan/roofline.js";
import { formatBytes as formatDecimalBytes, parseBytes, parseCount } from "../../core/plan/sizes.js";
import { type BackendName, type DeviceRates, load, type Model, type ModelMemory, type StepTimes, type WeightPlace } from "../../runtime/index.js";
import { readManifest, usualChunk } from "../../runtime/load.js";
import { cliDiagnostics } from "../diagnostics.js";
import { formatBytes, formatTable } from "../format.js";
import { untilInterrupted } from "../interrupt.js";
import { loadingStatus } from "../loading.js";
import { memoryLine } from "../memory-line.js";
import { durationText, operationsText } from "../plan-rows.js";
import type { Terminal } from "../terminal.js";

/** As it is typed. */
export interface BenchOptions {
  readonly prompt: string;
  readonly tokens: string;
  readonly batch: string;
  readonly repeat: string;
  readonly chunk?: string;
  readonly threads?: string;
  readonly budget?: string;
  readonly backend?: BackendName;
  readonly device?: string;
  readonly cudaGraphs?: boolean;
  readonly weights?: WeightPlace;
}

/** What is run in each repetition. */
interface Workload {
  readonly prompt: number;
  readonly tokens: number;
  readonly batch: number;
  readonly chunk: number;
  /** Decode steps before those that are timed. */
  readonly settling: number;
}

/** On a card a step is captured, once, when a state has taken a few. */
const stepsUntilCaptured = 4;

interface Timing {
  readonly prefillSeconds: number;
  readonly decodeSeconds: number;
  /** On a card. */
  readonly steps: StepTimes | null;
  /** While the state was there. */
  readonly memory: ModelMemory;
}

/** A mean and the standard deviation of a sample; 0 for one repetition. */
interface Sample {
  readonly mean: number;
  readonly deviation: number;
}

/**
 * Measures a model on this machine: repetitions of a prefill and of decoding after it, beside what the machine's own copy and
 * matrix-product rates allow at best.
 * @throws LayerweaveError as `load`, `plan/bad-count`, `plan/bad-bytes`, `cli/bench-beyond-context`
 */
export async function bench(terminal: Terminal, folder: string, options: BenchOptions): Promise<void> {
  const count = (name: "prompt" | "tokens" | "batch" | "repeat") => parseCount(options[name], `--${name}`);
  const [prompt, tokens, batch, repeat] = [count("prompt"), count("tokens"), count("batch"), count("repeat")];
  const threads = options.threads === undefined ? availableParallelism() : parseCount(options.threads, "--threads");
  const budget = options.budget === undefined ? undefined : parseBytes(options.budget, "--budget");
  const { model: { contextLength }, target } = await readManifest(folder); // prettier-ignore
  const chunk = options.chunk === undefined ? usualChunk[target === "cuda" ? "card" : "cpu"] : parseCount(options.chunk, "--chunk");
  const workload: Workload = { prompt, tokens, batch, chunk: Math.min(chunk, prompt), settling: target === "cuda" ? stepsUntilCaptured : 0 };
  const context = prompt + workload.settling + tokens;
  if (contextLength !== null && context > contextLength) fail(cliDiagnostics["bench-beyond-context"], { prompt, tokens: context - prompt, contextLength });

  terminal.status(`loading ${folder}`);
  await using model = await load(folder, {
    context,
    batch,
    chunk: workload.chunk,
    threads,
    backend: options.backend ?? "auto",
    cudaGraphs: options.cudaGraphs ?? true,
    weights: options.weights ?? "copied",
    onProgress: loadingStatus(terminal, folder),
    ...(options.device === undefined ? {} : { device: options.device }),
    ...(budget === undefined ? {} : { budget }),
  });
  const timings = await untilInterrupted(async (signal) => {
    const measured: Timing[] = [];
    for (let i = 0; i <= repeat; i++) {
      terminal.status(i === 0 ? "warming up" : `repetition ${i} of ${repeat}`);
      const timing = await runOnce(model, workload, i, signal);
      if (i > 0) measured.push(timing);
    }
    return measured;
  });
  // maxRSS is in KiB on every platform; read before the machine is measured, which takes memory of its own.
  const peakResidentBytes = process.resourceUsage().maxRSS * 1024;
  const memory = timings.at(-1)?.memory;
  invariant(memory, "there is a repetition");
  terminal.status("measuring the machine");
  const rates = await model.session.measureDevice();
  terminal.clearStatus();

  const steps = stepsOf(timings, tokens);
  const best = atBest(model, workload, rates);
  const phase = (seconds: readonly number[], fed: number, bound: { readonly seconds: number; readonly binds: Bound["binds"] }) => {
    const tokensPerSecond = sampleOf(seconds.map((s) => (batch * fed) / s));
    const rooflineTokensPerSecond = (batch * fed) / bound.seconds;
    return { tokens: fed, tokensPerSecond, rooflineTokensPerSecond, rooflineFraction: tokensPerSecond.mean / rooflineTokensPerSecond, binds: bound.binds };
  };
  const result = {
    model: model.manifest.model.name,
    backend: model.backend,
    computeDtype: model.manifest.graph.computeDtype,
    threads,
    batch,
    chunk: workload.chunk,
    repeat,
    machine: rates,
    prefill: phase(timings.map((t) => t.prefillSeconds), prompt, best.prefill), // prettier-ignore
    decode: phase(timings.map((t) => t.decodeSeconds), tokens, best.decode), // prettier-ignore
    // The first token is known when the logits of the prompt's last one are.
    timeToFirstTokenSeconds: sampleOf(timings.map((t) => t.prefillSeconds)),
    plan: model.reservation.plan.bytes,
    memory,
    ...(steps ? { card: { name: model.backend.card?.name, graphs: options.cudaGraphs ?? true, ...steps } } : {}),
    peakResidentBytes,
  };
  terminal.write(text(result));
  terminal.result(result);
}

/** Feeds a prompt of arbitrary tokens and as many more, one at a time: which tokens they are changes nothing but the experts they choose. */
async function runOnce(model: Model, { prompt, tokens, batch, chunk, settling }: Workload, seed: number, signal: AbortSignal): Promise<Timing> {
  const { vocabSize } = model.manifest.model;
  let drawn = seed + 1;
  const draw = (): number => {
    drawn = (Math.imul(drawn, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((drawn / 2 ** 32) * vocabSize);
  };
  const rows = (length: number) => Array.from({ length: batch }, () => Array.from({ length }, draw));
  await using state = await model.createState({ batch });
  const prompts = rows(prompt);
  const start = performance.now();
  await model.prefill(state, prompts, { chunk, signal });
  const prefilled = performance.now();
  for (let i = 0; i < settling; i++) await model.forward(state, rows(1));
  await state.stepTimes();
  const settled = performance.now();
  for (let i = 0; i < tokens; i++) {
    signal.throwIfAborted();
    await model.forward(state, rows(1));
  }
  const ended = performance.now();
  return { prefillSeconds: (prefilled - start) / 1000, decodeSeconds: (ended - settled) / 1000, steps: await state.stepTimes(), memory: await model.memory() };
}

/** What a step took on average, and where: the session's own share, that of waiting for the card, and what is left is JavaScript's. */
function stepsOf(timings: readonly Timing[], tokens: number): CardSteps | null {
  const known = timings.flatMap(({ steps }) => (steps ? [steps] : []));
  if (known.length < timings.length) return null;
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  return {
    stepSeconds: mean(timings.map(({ decodeSeconds }) => decodeSeconds / tokens)),
    hostSeconds: mean(known.map(({ hostSeconds, steps }) => hostSeconds / steps)),
    waitSeconds: mean(known.map(({ waitSeconds, steps }) => waitSeconds / steps)),
    launches: Math.max(...known.map(({ launches }) => launches)),
  };
}

/** Seconds that the machine's measured rates allow at best: for the prompt, and for decoding, each step at the mean length. */
function atBest(model: Model, { prompt, tokens, batch, chunk }: Workload, { copyBytesPerSecond, gemmOperationsPerSecond }: DeviceRates) {
  const source = "measured";
  const profile = model.reservation.device;
  const rate = { value: gemmOperationsPerSecond, source };
  const device = { ...profile, bandwidth: { value: copyBytesPerSecond, source }, matrixRates: { [profile.computeDtype]: rate }, vectorRate: rate };
  const planned = (context: number) => plan(planModelOf(model.manifest), { device, context, batch, chunk, quantize: "none", budget: Number.MAX_SAFE_INTEGER }).roofline;
  const prefill = planned(prompt);
  const decode = planned(prompt + Math.ceil(tokens / 2));
  return {
    prefill: { seconds: prefill.prefillSeconds, binds: prefill.prefill.binds },
    decode: { seconds: (tokens * batch) / decode.decodeTokensPerSecond, binds: decode.decode.binds },
  };
}

function sampleOf(values: readonly number[]): Sample {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, deviation: values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0 };
}

/** Of a decode step on a card, on average. */
interface CardSteps {
  readonly stepSeconds: number;
  readonly hostSeconds: number;
  readonly waitSeconds: number;
  readonly launches: number;
}

interface Phase {
  readonly tokens: number;
  readonly tokensPerSecond: Sample;
  readonly rooflineTokensPerSecond: number;
  readonly rooflineFraction: number;
  readonly binds: Bound["binds"];
}

interface Result {
  readonly model: string;
  readonly backend: Model["backend"];
  readonly computeDtype: Dtype;
  readonly threads: number;
  readonly batch: number;
  readonly chunk: number;
  readonly repeat: number;
  readonly machine: DeviceRates;
  readonly prefill: Phase;
  readonly decode: Phase;
  readonly timeToFirstTokenSeconds: Sample;
  /** By what it is for; `memory` has it by who holds it. */
  readonly plan: PlanBytes;
  readonly memory: ModelMemory;
  readonly card?: CardSteps & { readonly name: string | undefined; readonly graphs: boolean };
  readonly peakResidentBytes: number;
}

function text({ model, backend, computeDtype, threads, batch, chunk, repeat, machine, prefill, decode, timeToFirstTokenSeconds: first, memory, card, peakResidentBytes }: Result): string {
  const row = (name: string, { tokens, tokensPerSecond: { mean, deviation }, rooflineTokensPerSecond, rooflineFraction, binds }: Phase) => [
    name,
    String(tokens),
    `${mean.toFixed(1)} ± ${deviation.toFixed(1)}`,
    rooflineTokensPerSecond.toFixed(1),
    `${(100 * rooflineFraction).toFixed(0)} %`,
    binds,
  ];
  return [
    `${model}: ${backend.name} backend, ${backend.ops === "kernels" ? "kernels" : "function bodies"}, ${threads} ${threads === 1 ? "thread" : "threads"}, batch ${batch}, chunks of ${chunk}, ${repeat} repetitions`,
    `this machine: copy ${formatDecimalBytes(machine.copyBytesPerSecond)}/s (read and written), ${computeDtype} matrix product ${operationsText(machine.gemmOperationsPerSecond)} operations/s`,
    "",
    formatTable([["", "tokens", "tokens/s", "at best", "of that", "binds"], row("prefill", prefill), row("decode", decode)], { right: [1, 2, 3, 4] }).trimEnd(),
    `first token after ${durationText(first.mean)} ± ${durationText(first.deviation)}`,
    ...(card ? [cardLine(card)] : []),
    memoryLine(memory),
    `process at most ${formatBytes(peakResidentBytes)} resident`,
    "",
  ].join("\n");
}

function cardLine({ name, graphs, stepSeconds, hostSeconds, waitSeconds, launches }: NonNullable<Result["card"]>): string {
  const rest = Math.max(0, stepSeconds - hostSeconds - waitSeconds);
  return `${name}, ${graphs ? "captured steps" : "steps launched one by one"}: ${launches} launches and ${durationText(stepSeconds)} a step, of which ${durationText(waitSeconds)} waiting for the card, ${durationText(hostSeconds)} handing over and ${durationText(rest)} around it`;
}
