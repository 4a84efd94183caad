import { text as readAll } from "node:stream/consumers";
import { fail, invariant } from "../../core/diagnostics.js";
import { parseBytes, parseCount } from "../../core/plan/sizes.js";
import { type BackendName, type GenerateOptions, type GenerationStats, load, type Prompt, type WeightPlace } from "../../runtime/index.js";
import { cliDiagnostics } from "../diagnostics.js";
import { formatBytes } from "../format.js";
import { untilInterrupted } from "../interrupt.js";
import { loadingStatus } from "../loading.js";
import { memoryLine } from "../memory-line.js";
import type { Terminal } from "../terminal.js";

export interface RunOptions extends Omit<GenerateOptions, "signal" | "stopTokenIds"> {
  /** `-`: standard input. */
  readonly prompt?: string;
  readonly tokenIds?: readonly number[];
  /** Wraps the prompt in the model's chat template, as one user message. */
  readonly chat?: boolean;
  /** Tokens to have memory for; the model's context length when absent. */
  readonly context?: string;
  readonly budget?: string;
  /** Runs the model although the plan says that it does not fit. */
  readonly force?: boolean;
  readonly backend?: BackendName;
  readonly device?: string;
  readonly cudaGraphs?: boolean;
  readonly weights?: WeightPlace;
}

/** Continues a prompt: the new text on standard output as it is made, speed and memory on standard error. */
export async function run(terminal: Terminal, folder: string, { prompt, tokenIds, chat = false, context, budget, force = false, backend = "auto", device, cudaGraphs = true, weights = "copied", ...options }: RunOptions): Promise<void> {
  const given = tokenIds ?? (await readPrompt(prompt));
  terminal.status(`loading ${folder}`);
  await using model = await load(folder, {
    backend,
    cudaGraphs,
    weights,
    force,
    onProgress: loadingStatus(terminal, folder),
    ...(device === undefined ? {} : { device }),
    ...(options.chunk === undefined ? {} : { chunk: options.chunk }),
    ...(context === undefined ? {} : { context: parseCount(context, "--context") }),
    ...(budget === undefined ? {} : { budget: parseBytes(budget, "--budget") }),
  });
  terminal.clearStatus();
  const { refusal } = model.reservation;
  if (refusal) {
    terminal.report([{ ...refusal, severity: "warning" }]);
    terminal.note("Running it all the same (--force).");
  }
  const asked: Prompt = chat && typeof given === "string" ? [{ role: "user", content: given }] : given;
  const generated: number[] = [];
  let text = "";
  const stats = await untilInterrupted(async (interrupt) => {
    const signal = AbortSignal.any([interrupt, terminal.stdoutClosed]);
    const generation = model.generate(asked, { ...options, signal });
    try {
      for await (const token of generation) {
        // A model without a tokenizer speaks in token ids.
        terminal.write(model.tokenizer ? token.text : `${generated.length === 0 ? "" : " "}${token.tokenId}`);
        generated.push(token.tokenId);
        text += token.text;
      }
    } catch (error) {
      if (generated.length > 0) terminal.write("\n");
      if (terminal.stdoutClosed.aborted) return undefined;
      throw error;
    }
    terminal.write("\n");
    invariant(generation.stats, "a generation that ended has its counts");
    return generation.stats;
  });
  if (!stats) return;
  const memory = await model.memory();
  const speed = speedOf(stats);
  const card = (await model.session.memory())?.card;
  if (card) terminal.note(`${formatBytes(card.weights)} of weights loaded at ${formatBytes(card.weights / card.loadSeconds)}/s, ${formatBytes(card.usedNow - card.usedBefore)} of the card taken, ${formatBytes(card.usedNow)} of ${formatBytes(card.total)} used`);
  // maxRSS is in KiB on every platform.
  const peakMemoryBytes = process.resourceUsage().maxRSS * 1024;
  const rate = (tokensPerSecond: number | null) => (tokensPerSecond === null ? "" : ` at ${tokensPerSecond.toFixed(1)} tokens/s`);
  terminal.note(
    `prompt ${stats.promptTokens} tokens${rate(speed.prefill)}, decode ${stats.generatedTokens} tokens${rate(speed.decode)} (${stats.stopReason}), peak memory ${formatBytes(peakMemoryBytes)}, seed ${stats.seed}, ${model.backend.name} backend${stats.chosenOn === "device" ? ", tokens chosen on the card" : ""}`,
  );
  terminal.note(memoryLine(memory));
  terminal.result({
    ...(model.tokenizer ? { text } : {}),
    tokenIds: generated,
    stopReason: stats.stopReason,
    seed: stats.seed,
    chosenOn: stats.chosenOn,
    promptTokens: stats.promptTokens,
    generatedTokens: stats.generatedTokens,
    prefillSeconds: stats.prefillSeconds,
    decodeSeconds: stats.decodeSeconds,
    prefillTokensPerSecond: speed.prefill,
    decodeTokensPerSecond: speed.decode,
    peakMemoryBytes,
    backend: model.backend,
    ...(card ? { card } : {}),
    reservedBytes: model.reservation.plan.bytes.total,
    memory,
    warnings: refusal ? [refusal] : [],
  });
}

/** The first token comes out of the prefill, so decoding n tokens takes n - 1 steps. */
function speedOf({ promptTokens, prefillSeconds, generatedTokens, decodeSeconds }: GenerationStats): { readonly prefill: number | null; readonly decode: number | null } {
  const rate = (tokens: number, seconds: number) => (tokens > 0 && seconds > 0 ? tokens / seconds : null);
  return { prefill: rate(promptTokens, prefillSeconds), decode: rate(generatedTokens - 1, decodeSeconds) };
}

async function readPrompt(prompt: string | undefined): Promise<string> {
  if (prompt !== undefined && prompt !== "-") return prompt;
  if (prompt === undefined && process.stdin.isTTY) fail(cliDiagnostics["no-prompt"], {});
  // `echo` and editors end a text with a line break that is no part of it.
  const text = (await readAll(process.stdin)).replace(/\r?\n$/, "");
  if (text === "") fail(cliDiagnostics["no-prompt"], {});
  return text;
}
