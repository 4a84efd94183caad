// What the parts share: prompts, times of generations, and what the machine allows at best.
import { readFileSync } from "node:fs";
import { plan, planModelOf, withRates } from "layerweave/plan";
import { load } from "layerweave/runtime";

/** Arbitrary token ids: which they are changes nothing but the experts they choose. */
export function tokensOf(length, seed, vocabSize) {
  let drawn = seed >>> 0;
  return Array.from({ length }, () => {
    drawn = (Math.imul(drawn, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((drawn / 2 ** 32) * vocabSize);
  });
}

const seconds = (from) => (performance.now() - from) / 1000;

/** Loads a model while the process's memory is watched: what is its own, and what it maps of files. */
async function loadWatched(folder, options) {
  const most = { RssAnon: 0, RssFile: 0, RssShmem: 0 };
  const look = () => {
    const status = readFileSync("/proc/self/status", "utf8");
    for (const key of Object.keys(most)) most[key] = Math.max(most[key], 1024 * Number(new RegExp(`${key}:\\s+(\\d+)`).exec(status)?.[1] ?? 0));
  };
  const timer = setInterval(look, 20);
  const start = performance.now();
  try {
    const model = await load(folder, options);
    const taken = seconds(start);
    look();
    const { card } = await model.memory();
    const weights = model.reservation.plan.holders.weights;
    const reading = card?.loadSeconds ?? taken;
    return { model, loading: { seconds: taken, weightBytes: weights, weightSeconds: reading, bytesPerSecond: weights / reading, hostPeakBytes: { own: most.RssAnon, files: most.RssFile, shared: most.RssShmem } } };
  } finally {
    clearInterval(timer);
  }
}

/** A model whose configuration is one of `configurations`, opened and closed around `work`. */
export async function withModel(folder, options, work) {
  const { model, loading } = await loadWatched(folder, options);
  return closing(model, async () => ({ loading, plan: planned(model.reservation.plan), ...(await work(model)) }));
}

/** `await using` of what `work` is called with, which Node 20 doesn't read. */
export async function closing(resource, work) {
  try {
    return await work(resource);
  } finally {
    await resource[Symbol.asyncDispose]();
  }
}

export const planned = ({ context, batch, chunk, bytes, budget: { bytes: budget, fits, maxContext, maxBatch } }) => ({ context, batch, chunk, bytes, budget, fits, maxContext, maxBatch });

/** Where tokens are chosen: on the card where there is one. */
const chooseOn = (model) => (model.backend.card ? "device" : "host");

/** Steps after which a card repeats them as a captured graph, and a few more. */
const settling = 16;

/** One sequence continued greedily: times of its prefill and its steps, the latter also without the first ones. */
export async function generated(model, { prompt, tokens, seed }) {
  const generation = model.generate(tokensOf(prompt, seed, model.manifest.model.vocabSize), { maxTokens: tokens, stopTokenIds: [], chooseOn: chooseOn(model) });
  const times = [];
  for await (const token of generation) {
    void token;
    times.push(performance.now());
  }
  const { prefillSeconds, decodeSeconds, generatedTokens } = generation.stats;
  return { batch: 1, prompt, tokens: generatedTokens, prefillSeconds, decodeSeconds, decodePerSecond: (generatedTokens - 1) / decodeSeconds, settledPerSecond: settledRate(times), endToEndPerSecond: generatedTokens / (prefillSeconds + decodeSeconds) };
}

/** Tokens may arrive several at a time; then the time of each bunch is that of its last. */
function settledRate(times) {
  const step = (times.at(-1) - times[0]) / (times.length - 1);
  const bunches = times.flatMap((time, i) => (i === 0 || time - times[i - 1] > step / 4 ? [i] : []));
  const first = bunches.findIndex((i) => i >= Math.min(settling, times.length / 2));
  const [from, to] = [bunches[first], bunches.at(-1)];
  return from === undefined || to === from ? null : (1000 * (times.length - (bunches[first + 1] ?? times.length))) / (times[to] - times[from]);
}

/** Several sequences in one batch. Tokens are drawn, since greedy ones of random weights may come to be the same in all rows, and choose the same experts. */
export async function generatedBatch(model, { batch, prompt, tokens, seed }) {
  const prompts = Array.from({ length: batch }, (_, row) => tokensOf(prompt, seed + row, model.manifest.model.vocabSize));
  const completions = await model.generateBatch(prompts, { maxTokens: tokens, stopTokenIds: [], chooseOn: chooseOn(model), temperature: 1, seed });
  const { prefillSeconds } = completions[0].stats;
  const decodeSeconds = Math.max(...completions.map(({ stats }) => stats.decodeSeconds));
  const distinct = Array.from({ length: tokens }, (_, i) => new Set(completions.map(({ tokenIds }) => tokenIds[i])).size);
  return {
    batch,
    prompt,
    tokens,
    prefillSeconds,
    decodeSeconds,
    decodePerSecond: (batch * (tokens - 1)) / decodeSeconds,
    endToEndPerSecond: (batch * tokens) / (prefillSeconds + decodeSeconds),
    distinctTokensPerStep: distinct.reduce((sum, n) => sum + n, 0) / tokens,
  };
}

/** Cases one after another; one that fails ends them, and what was measured before stays. */
export async function inTurn(works) {
  const cases = [];
  try {
    for (const work of works) cases.push(await work());
    return { cases, ran: check("every case runs", works.length, cases.length, true) };
  } catch (error) {
    return { cases, ran: check("every case runs", works.length, `${cases.length}, then: ${String(error.message ?? error).slice(0, 600)}`, false) };
  }
}

/** What the rates that this process measured allow for each case, and the bytes that each step moves. */
export function besideBest(model, rates, cases) {
  const device = withRates(model.reservation.device, rates);
  const chunk = model.reservation.plan.chunk;
  const bound = (context, batch) => plan(planModelOf(model.manifest), { device, context, batch, chunk: Math.min(chunk, context), quantize: "none", budget: Number.MAX_SAFE_INTEGER }).roofline;
  return cases.map((run) => {
    const { batch, prompt, tokens, prefillSeconds, decodePerSecond, settledPerSecond, endToEndPerSecond } = run;
    const [prefill, decode] = [bound(prompt, batch), bound(prompt + Math.ceil(tokens / 2), batch)];
    const best = { prefillSeconds: prefill.prefillSeconds, decodePerSecond: decode.decodeTokensPerSecond, endToEndPerSecond: (batch * tokens) / (prefill.prefillSeconds + (batch * tokens) / decode.decodeTokensPerSecond) };
    return {
      ...run,
      best,
      fractions: { prefill: best.prefillSeconds / prefillSeconds, decode: (settledPerSecond ?? decodePerSecond) / best.decodePerSecond, endToEnd: endToEndPerSecond / best.endToEndPerSecond },
      stepBytes: decode.decode.bytes,
      binds: { prefill: prefill.prefill.binds, decode: decode.decode.binds },
    };
  });
}

/** Sums of what is compared, over numbers that may be many. */
export function difference(actual, expected) {
  let [most, squares, norm] = [0, 0, 0];
  for (let i = 0; i < expected.length; i++) {
    const delta = Math.abs(actual[i] - expected[i]);
    most = Math.max(most, delta);
    squares += delta * delta;
    norm += expected[i] * expected[i];
  }
  return { equal: actual.length === expected.length && bytesOf(actual).equals(bytesOf(expected)), most, relative: Math.sqrt(squares / norm) };
}

export const bytesOf = (numbers) => Buffer.from(numbers.buffer, numbers.byteOffset, numbers.byteLength);

/** The best token of those from `from` on, `count` of them round the end, and whether all logits are finite. */
export function bestToken(logits, from = 0, count = logits.length) {
  let finite = true;
  for (let i = 0; i < logits.length; i++) finite &&= Number.isFinite(logits[i]);
  let token = from;
  for (let k = 0; k < count; k++) {
    const i = (from + k) % logits.length;
    if (logits[i] > logits[token]) token = i;
  }
  return { token, finite };
}

/** A condition that was set before the run, and what came of it. */
export const check = (what, wanted, found, met) => ({ what, wanted, found, met });
