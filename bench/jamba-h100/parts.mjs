// The parts of the measurement. Each process of a part is run by run.mjs as
//   node parts.mjs <process> <request.json> <result.json>
import { createHash } from "node:crypto";
import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { deviceNamed, plan, planModelOf } from "layerweave/plan";
import { cudaCards, LayerweaveError, load, PrefixCache } from "layerweave/runtime";
import { parseManifest } from "#dist/core/manifest.js";
import { besideBest, bestToken, bytesOf, check, closing, difference, generated, generatedBatch, inTurn, planned, tokensOf, withModel } from "./measure.mjs";
import { build } from "./models.mjs";

/** `tiny` runs the same parts on shapes a thousand times smaller, to be tried without a card; contexts are divided by 256. */
export const scales = {
  full: { whole: 262_144, contexts: [8192, 32_768, 131_072], chunk: 8192, short: 512, output: 512, outputAtEnd: 128, rows: [4, 16], mostRows: 512, followUp: 100, continued: 32, long: 20_000, windows: [0, 5000, 10_000, 19_900], window: 32, needle: 102_400, needleChunks: [16_384, 4096, 1024] },
  tiny: { whole: 1024, contexts: [32, 128, 512], chunk: 32, short: 8, output: 16, outputAtEnd: 8, rows: [2, 4], mostRows: 4, followUp: 4, continued: 8, long: 120, windows: [0, 30, 60, 110], window: 8, needle: 800, needleChunks: [128, 32, 8] },
};

/** What the card is called by; it has 5·10⁹ bytes more. */
const cardBytes = 80e9;

/** Targets on one H100 80GB, set before the first run. */
const targets = { short: 180, whole: 125, batch16: 750, prefill8k: 0.45, prefill256k: 20, loadBytesPerSecond: 3e9, hostBytes: 8e9, followUpSeconds: 1, planTolerance: 0.02 };

/** Of logits and states after 100K tokens fed in other pieces: eight roundings to 8 bits, on the CPU float32's with int8 activations. */
const needleTolerance = { card: 8 * 2 ** -8, cpu: 1e-2 };

const manifestOf = async (folder) => parseManifest(await readFile(join(folder, "manifest.json"), "utf8"), folder);

/** On the CPU any budget does: one that a context half as long again would fill. */
function budgetOf(device, model, { whole, chunk }) {
  if (device !== "cpu") return cardBytes;
  return plan(model, { device: deviceNamed("cpu-native"), context: Math.ceil(1.5 * whole), batch: 1, chunk, quantize: "none", budget: Number.MAX_SAFE_INTEGER }).bytes.total;
}

const planFor = (model, device, configuration, budget) => plan(model, { device: deviceNamed(device === "cpu" ? "cpu-native" : "h100-80gb"), ...configuration, quantize: "none", budget });

/** The most rows of a context that fit, `tokens` of all of them prefilled at once. */
function mostRows(model, device, context, { chunk, mostRows: limit }, budget) {
  const configuration = (batch) => ({ context, batch, chunk: Math.max(1, Math.floor(chunk / batch)) });
  let batch = 1;
  while (batch < limit && planFor(model, device, configuration(batch + 1), budget).budget.fits) batch++;
  return configuration(batch);
}

/** What is loaded, by name: tokens a sequence may have, sequences, tokens of a prefill run. */
function configurations(name, model, device, scale) {
  const { whole, contexts, chunk, output, rows, followUp, continued, short, long } = scale;
  const [near, , far] = contexts;
  const budget = budgetOf(device, model, scale);
  const most = Math.max(...rows);
  const singles = name === "mixtral" ? { singles: { context: far + output, batch: 1, chunk } } : { singles: { context: whole, batch: 1, chunk } };
  const largest = { "largest-near": mostRows(model, device, near + output, scale, budget), "largest-far": mostRows(model, device, far + output, scale, budget) };
  if (name === "jamba-experts-int8") return singles;
  if (name === "mixtral") return { ...singles, ...largest };
  return {
    ...singles,
    batches: { context: near + output, batch: most, chunk: chunk / most },
    reuse: { context: whole + followUp + continued, batch: 1, chunk },
    long: { context: short + long, batch: 1, chunk },
    chunks: { context: whole, batch: 1, chunk: 2 * chunk },
    ...largest,
  };
}

async function configured({ name, folder, device, scale }, which) {
  const model = planModelOf(await manifestOf(folder));
  return configurations(name, model, device, scale)[which];
}

const options = ({ device }, configuration) => ({ device, ...configuration });

/** Plans of contexts twice as long as the one before, to the first that doesn't fit. */
function contextsUpTo({ whole }, plannedFor) {
  const found = [];
  for (let context = whole / 32; found.at(-1)?.fits ?? true; context *= 2) found.push(plannedFor(context));
  return found;
}

async function plans({ name, folder, device, scale }) {
  const model = planModelOf(await manifestOf(folder));
  const budget = budgetOf(device, model, scale);
  return {
    budget,
    plans: Object.fromEntries(Object.entries(configurations(name, model, device, scale)).map(([which, configuration]) => [which, planned(planFor(model, device, configuration, budget))])),
    overContext: contextsUpTo(scale, (context) => planned(planFor(model, device, { context, batch: 1, chunk: Math.min(scale.chunk, context) }, budget))),
  };
}

/** Bytes of the state's slots as they were allocated, by role; the first buffers, without the second ones of recurrent state. */
const stateBytes = ({ manifest, reservation: { plan: { bytes } } }, measured) => ({ kvCache: bytes.kvCache, convState: bytes.convState, ssmState: bytes.ssmState, second: bytes.stateCopies, planned: bytes.kvCache + bytes.convState + bytes.ssmState + bytes.stateCopies, allocated: measured, slots: manifest.state.length });

async function memoryOf(model) {
  const { planned: reserved, measured, card } = await model.memory();
  return { reserved, measured, card: card ?? null };
}

/** One sequence at growing contexts, and what the state took. */
async function singles(request, contexts, name) {
  const { scale, device } = request;
  const configuration = await configured(request, "singles");
  return withModel(request.folder, options(request, configuration), async (model) => {
    const first = await generated(model, { prompt: Math.min(16, scale.short), tokens: 8, seed: 1 });
    const rates = await model.session.measureDevice();
    const { cases, ran } = await inTurn(contexts.flatMap(({ prompt, tokens, repeat = 1 }) => Array.from({ length: repeat }, (_, i) => () => generated(model, { prompt, tokens, seed: 2 + i }))));
    const memory = await memoryOf(model);
    const [reserved, allocated] = [memory.reserved.state, memory.measured?.peak.state ?? null];
    const bounded = besideBest(model, rates, cases);
    const rate = (prompt) => Math.max(0, ...bounded.filter((c) => c.prompt === prompt).map((c) => c.settledPerSecond ?? c.decodePerSecond));
    const prefill = (prompt) => Math.min(...bounded.filter((c) => c.prompt === prompt).map((c) => c.prefillSeconds));
    const { short, contexts: [near], whole, outputAtEnd } = scale; // prettier-ignore
    const end = whole - outputAtEnd;
    const ofJamba = device !== "cpu" && name === "jamba";
    const ofWhole = device !== "cpu" && name !== "mixtral";
    return {
      timeToFirstTokenSeconds: first.prefillSeconds,
      cases: bounded,
      rates,
      memory,
      state: stateBytes(model, allocated),
      checks: [
        ran,
        check("state as allocated is what was planned, bytes", reserved, allocated, allocated === reserved),
        ...(ofJamba
          ? [
              check("decode, batch 1, short context, tokens/s", targets.short, rate(short), rate(short) >= targets.short),
              check("decode, batch 1, at 256K, tokens/s", targets.whole, rate(end), rate(end) >= targets.whole),
              check("prefill of 8K, s", targets.prefill8k, prefill(near), prefill(near) <= targets.prefill8k),
            ]
          : []),
        ...(ofWhole ? [check("prefill of 256K, s", targets.prefill256k, prefill(end), prefill(end) <= targets.prefill256k)] : []),
      ],
    };
  }).then(loadChecked(request));
}

/** Conditions of loading, beside those of what was done with the model. */
const loadChecked = ({ device }) => (result) => {
  const { bytesPerSecond, hostPeakBytes: { own, shared } } = result.loading; // prettier-ignore
  if (device === "cpu") return result;
  return {
    ...result,
    checks: [
      ...result.checks,
      check("weights loaded, bytes/s", targets.loadBytesPerSecond, bytesPerSecond, bytesPerSecond >= targets.loadBytesPerSecond),
      check("host memory while loading, bytes beyond the page cache", targets.hostBytes, own + shared, own + shared <= targets.hostBytes),
    ],
  };
};

async function batches(request) {
  const { scale, device } = request;
  const configuration = await configured(request, "batches");
  const [near] = scale.contexts;
  return withModel(request.folder, options(request, configuration), async (model) => {
    await generated(model, { prompt: scale.short, tokens: 8, seed: 1 });
    const rates = await model.session.measureDevice();
    const { cases, ran } = await inTurn(scale.rows.map((batch) => () => generatedBatch(model, { batch, prompt: near, tokens: scale.output, seed: 20 })));
    const memory = await memoryOf(model);
    const rate = cases.find(({ batch }) => batch === 16)?.decodePerSecond ?? 0;
    return {
      cases: besideBest(model, rates, cases),
      rates,
      memory,
      checks: [ran, ...(device === "cpu" ? [] : [check("decode, batch 16, at 8K, tokens/s", targets.batch16, rate, rate >= targets.batch16)])],
    };
  });
}

/** The most rows that fit, or as many as the time for a case allows: their prefill is `rows` times that of one. */
async function largest(request, which) {
  const { scale, caseSeconds, rowSeconds } = request;
  const prompt = which === "largest-near" ? scale.contexts[0] : scale.contexts[2];
  const fits = await configured(request, which);
  if (fits.batch === 1) return { prompt, fits: 1, limitedBy: "memory", sameAs: "a single sequence", checks: [] };
  const row = rowSeconds?.[prompt];
  if (row === undefined) throw new Error(`the prefill of one row of ${prompt} tokens is not measured yet: run the part of single sequences first`);
  const batch = Math.max(1, Math.min(fits.batch, Math.floor(caseSeconds / row)));
  const limitedBy = batch < fits.batch ? `time: ${caseSeconds} s for a prefill of ${row.toFixed(2)} s a row` : "memory";
  const configuration = { ...fits, batch, chunk: Math.max(1, Math.floor(scale.chunk / batch)) };
  return withModel(request.folder, options(request, configuration), async (model) => {
    const rates = await model.session.measureDevice();
    const cases = [await generatedBatch(model, { batch, prompt, tokens: scale.output, seed: 40 })];
    return { prompt, fits: fits.batch, limitedBy, cases: besideBest(model, rates, cases), rates, memory: await memoryOf(model), checks: [] };
  });
}

const reuseFile = ({ scratch }) => join(scratch, "jamba-reuse.safetensors");

/** Continues greedily; every step's logits are kept as a hash. */
async function continued(model, state, token, steps) {
  const tokens = [];
  const hashes = [];
  for (let i = 0; i < steps; i++) {
    const [logits] = await model.forward(state, [[token]], { transient: true });
    hashes.push(createHash("sha256").update(bytesOf(logits)).digest("hex"));
    ({ token } = bestToken(logits));
    tokens.push(token);
  }
  return { tokens, hashes };
}

/** A long beginning in the prefix cache, a follow-up to it, a cold run beside it, and the state written to a file. */
async function reuse(request) {
  const { scale, device } = request;
  const configuration = await configured(request, "reuse");
  return withModel(request.folder, options(request, configuration), async (model) => {
    const { vocabSize } = model.manifest.model;
    const beginning = tokensOf(scale.whole, 7, vocabSize);
    const prompt = [...beginning, ...tokensOf(scale.followUp, 8, vocabSize)];
    const cache = new PrefixCache(model, Infinity);
    const timed = async (work) => {
      const start = performance.now();
      return { result: await work(), seconds: (performance.now() - start) / 1000 };
    };
    const first = await timed(() => cache.prefill(beginning, { boundaries: [beginning.length] }));
    await first.result.state[Symbol.asyncDispose]();
    const follow = [];
    let answer;
    for (let i = 0; i < 2; i++) {
      if (answer) await answer.state[Symbol.asyncDispose]();
      const run = await timed(() => cache.prefill(prompt, { boundaries: [] }));
      answer = run.result;
      follow.push(run.seconds);
    }
    const memory = await memoryOf(model);
    const logits = Float32Array.from(answer.logits);
    const coldRun = await closing(await model.createState(), (cold) => timed(() => model.prefill(cold, [prompt])));
    const against = difference(logits, coldRun.result[0]);
    const saved = await timed(() => answer.state.save(reuseFile(request)));
    const { token } = bestToken(logits);
    const expected = await continued(model, answer.state, token, scale.continued);
    await answer.state[Symbol.asyncDispose]();
    await cache[Symbol.asyncDispose]();
    const fileBytes = (await stat(reuseFile(request))).size;
    await writeFile(`${reuseFile(request)}.json`, JSON.stringify({ token, ...expected }));
    return {
      beginning: beginning.length,
      followUp: scale.followUp,
      report: answer.report,
      beginningSeconds: first.seconds,
      followUpSeconds: follow,
      coldSeconds: coldRun.seconds,
      againstCold: against,
      file: { bytes: fileBytes, saveSeconds: saved.seconds },
      memory,
      checks: [
        check("tokens found in the prefix cache", beginning.length, answer.report.reused, answer.report.reused === beginning.length),
        check("logits of the follow-up as of a cold run", "bit for bit", against.equal ? "equal" : `relative difference ${against.relative}`, against.equal),
        ...(device === "cpu" ? [] : [check("follow-up's first answer, s", targets.followUpSeconds, follow[0], Math.max(...follow) < targets.followUpSeconds)]),
      ],
    };
  });
}

/** In a new process: the saved state, continued. */
async function restart(request) {
  const configuration = await configured(request, "reuse");
  const { token, tokens, hashes } = JSON.parse(await readFile(`${reuseFile(request)}.json`, "utf8"));
  const result = await withModel(request.folder, options(request, configuration), async (model) => {
    const start = performance.now();
    const state = await model.loadState(reuseFile(request));
    const seconds = (performance.now() - start) / 1000;
    const found = await closing(state, () => continued(model, state, token, tokens.length));
    const same = (a, b) => a.every((value, i) => value === b[i]);
    return { loadStateSeconds: seconds, checks: [check("tokens of a saved state in a new process", "the same", same(found.tokens, tokens) ? "the same" : found.tokens.join(" "), same(found.tokens, tokens)), check("and their logits", "bit for bit", same(found.hashes, hashes) ? "equal" : "different", same(found.hashes, hashes))] };
  });
  for (const file of [reuseFile(request), `${reuseFile(request)}.json`]) await rm(file);
  return result;
}

/** Beyond the planner's largest context. */
const tried = [1.05, 1.1, 1.15, 1.2];

/** The planner's largest context for what is free, really allocated and used at both ends, and longer ones until one fails. */
async function limit(request) {
  const { folder, device, scale } = request;
  const model = planModelOf(await manifestOf(folder));
  const card = device === "cpu" ? undefined : (await cudaCards())[0];
  const budget = card?.freeBytes ?? budgetOf(device, model, scale);
  const { chunk } = scale;
  const most = (bytes) => planFor(model, device, { context: scale.whole, batch: 1, chunk }, bytes).budget.maxContext;
  const context = most(budget);
  const of = (factor) => Math.ceil(factor * context);
  const asked = { device, batch: 1, chunk, budget };
  const fits = await withModel(folder, { ...asked, context }, async (model) => {
    return { ...(await atBothEnds(model, context, chunk)), memory: await memoryOf(model) };
  });
  const refused = await problem(() => load(folder, { ...asked, context: of(tried[0]) }).then((opened) => opened.close()));
  const { forced } = await withModel(folder, { ...asked, context: of(tried.at(-1)), force: true }, async (model) => {
    const forced = [];
    for (const factor of tried) {
      const failed = await problem(() => atBothEnds(model, of(factor), chunk));
      forced.push({ context: of(factor), failed });
      if (failed) break;
    }
    return { forced };
  });
  const [longer] = forced;
  return {
    budget,
    context,
    contextFor80: most(device === "cpu" ? budget : cardBytes),
    ran: "state reserved at full size; a chunk fed at its beginning and one at its very end, 16 tokens decoded behind each; the positions between were not fed and hold zeros",
    fits,
    refused,
    forced,
    longestThatRan: Math.max(context, ...forced.filter(({ failed }) => failed === null).map((run) => run.context)),
    checks: [
      check("the planner's largest context runs", context, context, fits.finite),
      check("5 % more is refused by the plan", "plan/over-budget", refused?.codes.join(" ") ?? "it was opened", refused?.codes.includes("plan/over-budget") === true),
      ...(device === "cpu" ? [] : [check("5 % more, forced, fails with a clear error", "runtime/out-of-memory", longer.failed?.codes.join(" ") ?? "it ran", longer.failed?.codes.includes("runtime/out-of-memory") === true)]),
    ],
  };
}

/** What `work` fails with; null when it doesn't. */
async function problem(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return { codes: error instanceof LayerweaveError ? error.diagnostics.map(({ code }) => code) : [], message: String(error.message ?? error).slice(0, 600) };
  }
}

/** The session is used directly: a `State` can't skip positions. */
async function atBothEnds({ session, manifest }, context, chunk) {
  const { vocabSize } = manifest.model;
  const state = await session.createState(1, context);
  const steps = Math.min(16, chunk);
  const at = async (past, tokens) => {
    const start = performance.now();
    const logits = await session.forward({ state, inputIds: BigInt64Array.from(tokens, BigInt), pastLengths: [past], lengths: [tokens.length], logitIndices: BigInt64Array.of(BigInt(tokens.length - 1)) });
    return { seconds: (performance.now() - start) / 1000, finite: bestToken(logits).finite };
  };
  const end = async (past) => {
    const ids = tokensOf(chunk + steps, past + 1, vocabSize);
    const runs = [await at(past, ids.slice(0, chunk))];
    for (let i = 0; i < steps; i++) runs.push(await at(past + chunk + i, [ids[chunk + i]]));
    const settled = runs.slice(1 + steps / 2).map(({ seconds }) => seconds);
    return { chunkSeconds: runs[0].seconds, stepSeconds: settled.reduce((a, b) => a + b, 0) / settled.length, finite: runs.every(({ finite }) => finite) };
  };
  try {
    const beginning = await end(0);
    const last = await end(context - chunk - steps);
    return { beginning, end: last, finite: beginning.finite && last.finite };
  } finally {
    session.releaseState(state);
  }
}

const windowsFile = ({ scratch }, at) => join(scratch, `jamba-long-${at}.safetensors`);

/** One sequence of many tokens; at some of them its state is kept in a file, and the logits of the steps that follow. */
async function long(request) {
  const { scale, device } = request;
  const configuration = await configured(request, "long");
  const { short, long: steps, windows, window } = scale;
  return withModel(request.folder, options(request, configuration), async (model) => {
    const { vocabSize } = model.manifest.model;
    const state = await model.createState();
    let [logits] = await model.prefill(state, [tokensOf(short, 11, vocabSize)]);
    // Greedy tokens of random weights soon repeat themselves; the best of some neighbours, drawn anew with each step, do not.
    const starts = tokensOf(steps, 12, vocabSize);
    const fed = [];
    const kept = [];
    const memory = [];
    let finite = true;
    const start = performance.now();
    let saving = 0;
    for (let i = 0; i < steps; i++) {
      const next = bestToken(logits, starts[i], Math.min(1024, vocabSize));
      finite &&= next.finite;
      fed.push(next.token);
      if (windows.includes(i)) {
        const before = performance.now();
        await state.save(windowsFile(request, i));
        saving += performance.now() - before;
      }
      [logits] = await model.forward(state, [[next.token]], { transient: true });
      if (windows.some((at) => i >= at && i < at + window)) kept.push({ step: i, token: next.token, logits: Buffer.from(bytesOf(logits)).toString("base64") });
      if (i % Math.floor(steps / 20) === Math.floor(steps / 20) - 1) {
        const { measured, card } = await model.memory();
        memory.push({ step: i + 1, bytes: card?.usedNow ?? measured.now.total });
      }
    }
    finite &&= bestToken(logits).finite;
    const seconds = (performance.now() - start - saving) / 1000;
    await writeFile(join(request.scratch, "jamba-long.json"), JSON.stringify(kept));
    // The first sample is behind the capture of a step.
    const used = memory.map(({ bytes }) => bytes);
    const growth = Math.max(...used) - used[0];
    return {
      tokens: steps,
      distinctTokens: new Set(fed).size,
      decodePerSecond: steps / seconds,
      memory,
      growthBytes: growth,
      checks: [check("every logit finite", true, finite, finite), check("memory beyond that after the first twentieth, bytes", device === "cpu" ? "0" : "at most 4 MiB", growth, growth <= (device === "cpu" ? 0 : 2 ** 22))],
    };
  });
}

/** The kept steps again, launched one by one from the kept states. */
async function plain(request) {
  const { scale, device } = request;
  const configuration = await configured(request, "long");
  const kept = JSON.parse(await readFile(join(request.scratch, "jamba-long.json"), "utf8"));
  const result = await withModel(request.folder, { ...options(request, configuration), ...(device === "cpu" ? {} : { cudaGraphs: false }) }, async (model) => {
    const windows = [];
    for (const at of scale.windows) {
      const state = await model.loadState(windowsFile(request, at));
      let [equal, most] = [0, 0];
      const steps = kept.filter(({ step }) => step >= at && step < at + scale.window);
      for (const { token, logits } of steps) {
        const [found] = await model.forward(state, [[token]]);
        const bytes = Buffer.from(logits, "base64");
        const against = difference(found, new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)));
        if (against.equal) equal++;
        most = Math.max(most, against.most);
      }
      await state[Symbol.asyncDispose]();
      windows.push({ at, steps: steps.length, equal, mostDifference: most });
    }
    const found = windows.map(({ equal, steps }) => `${equal}/${steps}`).join(" ");
    const met = windows.every(({ equal, steps }) => steps > 0 && equal === steps);
    return {
      windows,
      ...(device === "cpu" ? { notRun: "captured graphs against plain steps: there is no card; both sides are plain here" } : {}),
      checks: [check(`steps of a captured graph as launched one by one, windows at ${scale.windows.join(", ")}`, "bit for bit", found, met)],
    };
  });
  for (const at of scale.windows) await rm(windowsFile(request, at));
  await rm(join(request.scratch, "jamba-long.json"));
  return result;
}

/** The prompt of the whole context in chunks of twice as many tokens. */
async function chunks(request) {
  const { scale } = request;
  const configuration = await configured(request, "chunks");
  return withModel(request.folder, options(request, configuration), async (model) => {
    const rates = await model.session.measureDevice();
    const cases = [await generated(model, { prompt: scale.whole - scale.outputAtEnd, tokens: scale.outputAtEnd, seed: 2 })];
    return { chunk: configuration.chunk, cases: besideBest(model, rates, cases), rates, memory: await memoryOf(model), checks: [] };
  });
}

/** A long prompt in pieces of several sizes, and with another passage near its beginning, which must show. */
async function needle(request) {
  const { folder, device, scale } = request;
  const { needle: length, needleChunks } = scale;
  const tolerance = needleTolerance[device === "cpu" ? "cpu" : "card"];
  return withModel(folder, { device, context: length, batch: 1, chunk: Math.max(...needleChunks) }, async (model) => {
    const { vocabSize } = model.manifest.model;
    const prompt = tokensOf(length, 31, vocabSize);
    const at = Math.floor(length / 10);
    const passage = tokensOf(16, 32, vocabSize);
    const run = async (ids, chunk) =>
      closing(await model.createState(), async (state) => {
        const [logits] = await model.prefill(state, [ids], { chunk });
        const slots = new Map();
        for (const { layer, role } of model.manifest.state) slots.set(`${layer}.${role}`, (await state.read(layer, role)).data);
        return { logits: Float32Array.from(logits), slots };
      });
    const compare = (found, expected) => ({
      logits: difference(found.logits, expected.logits),
      ...Object.fromEntries(["key", "value", "conv_state", "ssm_state"].map((role) => [role, [...expected.slots].filter(([slot]) => slot.endsWith(`.${role}`)).map(([slot, data]) => difference(found.slots.get(slot), data).relative).reduce((a, b) => Math.max(a, b), 0)])),
    });
    const most = ({ logits, key, value, conv_state, ssm_state }) => Math.max(logits.relative, key, value, conv_state, ssm_state);
    const expected = await run(prompt, needleChunks[0]);
    const against = [];
    for (const chunk of needleChunks.slice(1)) against.push({ chunk, ...compare(await run(prompt, chunk), expected) });
    const other = compare(await run(prompt.with(at, passage[0]).toSpliced(at, passage.length, ...passage), needleChunks[0]), expected);
    const worst = Math.max(...against.map(most));
    return {
      tokens: length,
      tolerance,
      expectedChunk: needleChunks[0],
      against,
      otherPassage: { at, tokens: passage.length, ...other },
      checks: [
        check(`relative difference of logits and states, chunks of ${needleChunks.slice(1).join(" and ")} against ${needleChunks[0]}`, `at most ${tolerance}`, worst, worst <= tolerance),
        check("another passage of 16 tokens at a tenth of the prompt changes the logits", "yes", other.logits.relative, !other.logits.equal),
      ],
    };
  });
}

const growing = ({ scale: { short, contexts: [near, middle, far], output, outputAtEnd, whole } }) => ({ // prettier-ignore
  jamba: [{ prompt: short, tokens: output }, { prompt: near, tokens: output, repeat: 3 }, { prompt: middle, tokens: outputAtEnd }, { prompt: far, tokens: output }, { prompt: whole - outputAtEnd, tokens: outputAtEnd }],
  "jamba-experts-int8": [{ prompt: short, tokens: output }, { prompt: whole - outputAtEnd, tokens: outputAtEnd }],
  mixtral: [{ prompt: short, tokens: output }, { prompt: near, tokens: output, repeat: 3 }, { prompt: middle, tokens: outputAtEnd }, { prompt: far, tokens: output }],
});

const processes = {
  build: (request) => build(request.name, { ...request, folder: request.models, scale: request.scaleName }).then((result) => ({ ...result, checks: [] })),
  plans: (request) => plans(request).then((result) => ({ ...result, checks: [] })),
  singles: (request) => singles(request, growing(request)[request.name], request.name),
  batches,
  "largest-near": (request) => largest(request, "largest-near"),
  "largest-far": (request) => largest(request, "largest-far"),
  reuse,
  restart,
  limit,
  long,
  plain,
  chunks,
  needle,
};

/** In the order of their importance, those of a model together; `seconds` is what a part may take, about 1.6 times what is expected on an H100. */
export const parts = [
  { name: "jamba-plan", model: "jamba", processes: ["plans"], seconds: 20 },
  { name: "jamba", model: "jamba", processes: ["singles"], seconds: 100 },
  { name: "jamba-batches", model: "jamba", processes: ["batches"], seconds: 70 },
  { name: "jamba-reuse", model: "jamba", processes: ["reuse", "restart"], seconds: 140 },
  { name: "jamba-limit", model: "jamba", processes: ["limit"], seconds: 70 },
  { name: "jamba-largest", model: "jamba", processes: ["largest-near", "largest-far"], seconds: 230 },
  { name: "needle", model: "tiny-jamba", processes: ["needle"], seconds: 50 },
  { name: "jamba-long", model: "jamba", processes: ["long", "plain"], seconds: 230 },
  { name: "jamba-chunks", model: "jamba", processes: ["chunks"], seconds: 60 },
  { name: "mixtral-plan", model: "mixtral", processes: ["plans"], seconds: 20 },
  { name: "mixtral", model: "mixtral", processes: ["singles"], seconds: 100 },
  { name: "mixtral-limit", model: "mixtral", processes: ["limit"], seconds: 70 },
  { name: "mixtral-largest", model: "mixtral", processes: ["largest-near", "largest-far"], seconds: 110 },
  { name: "experts-int8-plan", model: "jamba-experts-int8", processes: ["plans"], seconds: 20 },
  { name: "experts-int8", model: "jamba-experts-int8", processes: ["singles"], seconds: 90 },
];

/** Seconds that building a model may take. */
export const buildSeconds = { jamba: 130, "jamba-experts-int8": 130, mixtral: 130, "tiny-jamba": 20 };

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [which, requestFile, resultFile] = process.argv.slice(2);
  const request = JSON.parse(await readFile(requestFile, "utf8"));
  try {
    const result = await processes[which]({ ...request, scaleName: request.scale, scale: scales[request.scale], folder: join(request.models, request.name) });
    await writeFile(resultFile, JSON.stringify(result));
  } catch (error) {
    console.error(error instanceof LayerweaveError ? error.message : error);
    process.exitCode = 1;
  }
}
