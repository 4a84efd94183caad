import { availableParallelism } from "node:os";
import { fail, invariant } from "../../core/diagnostics.js";
import type { Dtype } from "../../core/dtype.js";
import { withRates } from "../../core/plan/devices.js";
import { planModelOf } from "../../core/plan/model.js";
import { plan, type PlanBytes } from "../../core/plan/plan.js";
import type { Bound } from "../../core/plan/roofline.js";
import { formatBytes as formatDecimalBytes, parseBytes, parseCount } from "../../core/plan/sizes.js";
import { type BackendName, type DeviceRates, load, type Model, type ModelMemory, type StepTimes, type WeightPlace } from "../../runtime/index.js";
import type { DeviceSampling } from "../../runtime/backends/backend.js";
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
  readonly depth?: string;
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
  /** Tokens in the cache before decoding; the prompt's at least. */
  readonly depth: number;
  readonly chunk: number;
  /** Decode steps before those that are timed. */
  readonly settling: number;
}

/** On a card a step is captured, once, when a state has taken a few. */
const stepsUntilCaptured = 4;

/** How decoding goes on: a card chooses tokens, or logits come back from every step and any token is fed. */
type Decoding = "device" | "logits";

interface DecodeTiming {
  readonly seconds: number;
  /** On a card. */
  readonly steps: StepTimes | null;
}

interface Timing {
  readonly prefillSeconds: number;
  /** Of those that there are. */
  readonly decode: Readonly<Partial<Record<Decoding, DecodeTiming>>>;
  /** Different tokens that the card chose. */
  readonly different: number;
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
  const depth = Math.max(prompt, options.depth === undefined ? 0 : parseCount(options.depth, "--depth"));
  const threads = options.threads === undefined ? availableParallelism() : parseCount(options.threads, "--threads");
  const budget = options.budget === undefined ? undefined : parseBytes(options.budget, "--budget");
  const { model: { contextLength }, target } = await readManifest(folder); // prettier-ignore
  const chunk = options.chunk === undefined ? usualChunk[target === "cuda" ? "card" : "cpu"] : parseCount(options.chunk, "--chunk");
  const workload: Workload = { prompt, tokens, batch, depth, chunk: Math.min(chunk, depth), settling: target === "cuda" ? stepsUntilCaptured : 0 };
  const context = depth + workload.settling + (target === "cuda" ? 2 : 1) * tokens;
  if (contextLength !== null && context > contextLength) fail(cliDiagnostics["bench-beyond-context"], { prompt: depth, tokens: context - depth, contextLength });

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
      // A long cache is left out of warming up: what reads it is run before it is timed.
      const timing = await runOnce(model, i === 0 ? { ...workload, depth: prompt } : workload, i, signal);
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

  const best = atBest(model, workload, rates);
  const phase = (seconds: readonly number[], fed: number, bound: { readonly seconds: number; readonly binds: Bound["binds"] }) => {
    const tokensPerSecond = sampleOf(seconds.map((s) => (batch * fed) / s));
    const rooflineTokensPerSecond = (batch * fed) / bound.seconds;
    return { tokens: fed, tokensPerSecond, rooflineTokensPerSecond, rooflineFraction: tokensPerSecond.mean / rooflineTokensPerSecond, binds: bound.binds };
  };
  const main: Decoding = model.session.sampling ? "device" : "logits";
  const decoded = (decoding: Decoding) => phase(timings.map((t) => decodeOf(t, decoding).seconds), tokens, best.decode); // prettier-ignore
  const result: Result = {
    model: model.manifest.model.name,
    backend: model.backend,
    computeDtype: model.manifest.graph.computeDtype,
    threads,
    batch,
    depth,
    chunk: workload.chunk,
    repeat,
    machine: rates,
    prefill: phase(timings.map((t) => t.prefillSeconds), prompt, best.prefill), // prettier-ignore
    decode: decoded(main),
    ...(main === "device" ? { chosen: { on: "device", how: batch > 1 ? "drawn" : "greedily", different: Math.max(...timings.map((t) => t.different)) }, decodeWithLogits: decoded("logits") } : {}),
    // The first token is known when the logits of the prompt's last one are.
    timeToFirstTokenSeconds: sampleOf(timings.map((t) => t.prefillSeconds)),
    plan: model.reservation.plan.bytes,
    memory,
    ...(model.backend.card ? { card: { name: model.backend.card.name, graphs: options.cudaGraphs ?? true, ...stepsOf(timings, main, tokens) } } : {}),
    ...(main === "device" ? { cardWithLogits: stepsOf(timings, "logits", tokens) } : {}),
    peakResidentBytes,
  };
  terminal.write(text(result));
  terminal.result({ ...result });
}

/** Feeds a prompt of arbitrary tokens and more, one at a time: which tokens they are changes nothing but the experts they choose. */
async function runOnce(model: Model, { prompt, tokens, batch, depth, chunk, settling }: Workload, seed: number, signal: AbortSignal): Promise<Timing> {
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
  if (depth > prompt) await model.prefill(state, rows(depth - prompt), { chunk, signal });
  for (let i = 0; i < settling; i++) await model.forward(state, rows(1));
  const timed = async (run: () => Promise<void>): Promise<DecodeTiming> => {
    await state.stepTimes();
    const begun = performance.now();
    await run();
    const seconds = (performance.now() - begun) / 1000;
    signal.throwIfAborted();
    return { seconds, steps: await state.stepTimes() };
  };
  const { sampling } = model.session;
  const chosen: (readonly (number | undefined)[])[] = [];
  const onDevice = async (sampling: DeviceSampling): Promise<DecodeTiming> => {
    const sampler = await sampling.create(Array.from({ length: batch }, (_, row) => ({ ...greedily, temperature: batch > 1 ? 1 : 0, seed: seed * batch + row })));
    const limits = new Array<number>(batch).fill(tokens);
    try {
      return await timed(() => state.decode(rows(1).flat(), { limits, stopTokenIds: [], sampling, sampler, onTokens: (given) => chosen.push(given), signal }));
    } finally {
      sampling.release(sampler);
    }
  };
  const device = sampling && (await onDevice(sampling));
  const logits = await timed(async () => {
    for (let i = 0; i < tokens && !signal.aborted; i++) await model.forward(state, rows(1), { transient: true });
  });
  const decode = { logits, ...(device ? { device } : {}) };
  return { prefillSeconds: (prefilled - start) / 1000, decode, different: new Set(chosen.flat()).size, memory: await model.memory() };
}

/** Rows of a batch draw: the best tokens of random weights soon repeat, and rows that do choose the same experts. */
const greedily = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 };

function decodeOf({ decode }: Timing, decoding: Decoding): DecodeTiming {
  const timing = decode[decoding];
  invariant(timing, "what is reported was measured");
  return timing;
}

/** What a step took on average, and where: the session's own share, that of waiting for the card, and what is left is JavaScript's. */
function stepsOf(timings: readonly Timing[], decoding: Decoding, tokens: number): CardSteps {
  const known = timings.map((timing) => {
    const { seconds, steps } = decodeOf(timing, decoding);
    invariant(steps, "a card counts its steps");
    return { seconds, ...steps };
  });
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  return {
    stepSeconds: mean(known.map(({ seconds }) => seconds / tokens)),
    hostSeconds: mean(known.map(({ hostSeconds, steps }) => hostSeconds / steps)),
    waitSeconds: mean(known.map(({ waitSeconds, steps }) => waitSeconds / steps)),
    launches: Math.max(...known.map(({ launches }) => launches)),
  };
}

/** Seconds that the machine's measured rates allow at best: for the prompt, and for decoding, each step at the mean length. */
function atBest(model: Model, { prompt, tokens, batch, depth, chunk }: Workload, rates: DeviceRates) {
  const device = withRates(model.reservation.device, rates);
  const planned = (context: number) => plan(planModelOf(model.manifest), { device, context, batch, chunk, quantize: "none", budget: Number.MAX_SAFE_INTEGER }).roofline;
  const prefill = planned(prompt);
  const decode = planned(depth + Math.ceil(tokens / 2));
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
  readonly depth: number;
  readonly chunk: number;
  readonly repeat: number;
  readonly machine: DeviceRates;
  readonly prefill: Phase;
  readonly decode: Phase;
  /** Where a card chose the tokens that were decoded; `decodeWithLogits` then is the other way. */
  readonly chosen?: { readonly on: "device"; readonly how: "greedily" | "drawn"; readonly different: number };
  readonly decodeWithLogits?: Phase;
  readonly timeToFirstTokenSeconds: Sample;
  /** By what it is for; `memory` has it by who holds it. */
  readonly plan: PlanBytes;
  readonly memory: ModelMemory;
  readonly card?: CardSteps & { readonly name: string; readonly graphs: boolean };
  readonly cardWithLogits?: CardSteps;
  readonly peakResidentBytes: number;
}

function text(result: Result): string {
  const { model, backend, computeDtype, threads, batch, depth, chunk, repeat, machine, prefill, decode, chosen, decodeWithLogits, timeToFirstTokenSeconds: first, memory, card, cardWithLogits, peakResidentBytes } = result;
  const rows = [row("prefill", prefill), row("decode", decode), ...(decodeWithLogits ? [row("with logits", decodeWithLogits)] : [])];
  return [
    `${model}: ${backend.name} backend, ${backend.ops === "kernels" ? "kernels" : "function bodies"}, ${threads} ${threads === 1 ? "thread" : "threads"}, batch ${batch}, chunks of ${chunk}, ${repeat} repetitions`,
    `this machine: copy ${formatDecimalBytes(machine.copyBytesPerSecond)}/s (read and written), ${computeDtype} matrix product ${operationsText(machine.gemmOperationsPerSecond)} operations/s`,
    "",
    formatTable([["", "tokens", "tokens/s", "at best", "of that", "binds"], ...rows], { right: [1, 2, 3, 4] }).trimEnd(),
    ...(chosen ? [`decode: the card ${chosen.how === "drawn" ? "draws tokens" : "chooses the best token"}, ${chosen.different} different ones; with logits: those of every step go to JavaScript`] : []),
    ...(depth > prefill.tokens ? [`decoded with ${depth} tokens in the cache`] : []),
    `first token after ${durationText(first.mean)} ± ${durationText(first.deviation)}`,
    ...(card ? [`${card.name}, ${card.graphs ? "captured steps" : "steps launched one by one"}: ${stepLine(card)}`] : []),
    ...(cardWithLogits ? [`with logits: ${stepLine(cardWithLogits)}`] : []),
    memoryLine(memory),
    `process at most ${formatBytes(peakResidentBytes)} resident`,
    "",
  ].join("\n");
}

function row(name: string, { tokens, tokensPerSecond: { mean, deviation }, rooflineTokensPerSecond, rooflineFraction, binds }: Phase): string[] {
  return [name, String(tokens), `${mean.toFixed(1)} ± ${deviation.toFixed(1)}`, rooflineTokensPerSecond.toFixed(1), `${(100 * rooflineFraction).toFixed(0)} %`, binds];
}

function stepLine({ stepSeconds, hostSeconds, waitSeconds, launches }: CardSteps): string {
  const rest = Math.max(0, stepSeconds - hostSeconds - waitSeconds);
  return `${launches} launches and ${durationText(stepSeconds)} a step, of which ${durationText(waitSeconds)} waiting for the card, ${durationText(hostSeconds)} handing over and ${durationText(rest)} around it`;
}
