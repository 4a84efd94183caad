import { spawnSync } from "node:child_process";
import { afterAll, describe, expect, test } from "vitest";
import { load, type GenerateOptions, type Model, type Prompt } from "#dist/runtime/index.js";
import { backends } from "../support/backends.js";
import { codes } from "./diagnostics.js";
import { bos, eos, fakeModel, referenceLogits, removeFakes, vocabSize } from "./fake-model.js";

afterAll(removeFakes);

async function collect(model: Model, prompt: Prompt, options: GenerateOptions = {}): Promise<{ ids: number[]; text: string; reason: string | undefined }> {
  const generation = model.generate(prompt, options);
  const ids: number[] = [];
  let text = "";
  for await (const token of generation) {
    ids.push(token.tokenId);
    text += token.text;
  }
  return { ids, text, reason: generation.stats?.stopReason };
}

/** Greedy decoding without any state: every step computes the whole sequence anew. */
function greedy(prompt: readonly number[], count: number): number[] {
  const ids = [...prompt];
  for (let i = 0; i < count; i++) {
    const last = referenceLogits(ids).slice(-vocabSize);
    ids.push(last.indexOf(Math.max(...last)));
  }
  return ids.slice(prompt.length);
}

describe.each(backends)("generate on the %s backend", (backend) => {
  test("greedy decoding gives the tokens of the definition, and counts them", async () => {
    await using model = await load(await fakeModel(), { backend });
    const prompt = [bos, 72, 101, 108];
    const generation = model.generate(prompt, { maxTokens: 20, stopTokenIds: [] });
    const ids: number[] = [];
    for await (const { tokenId } of generation) ids.push(tokenId);
    expect(ids).toEqual(greedy(prompt, 20));
    expect(generation.stats).toMatchObject({ promptTokens: 4, generatedTokens: 20, stopReason: "length" });
    expect(generation.stats?.prefillSeconds).toBeGreaterThan(0);
    expect(generation.stats?.decodeSeconds).toBeGreaterThan(0);
  });

  test("text prompts begin with BOS; streamed text is the text of all tokens", async () => {
    await using model = await load(await fakeModel(), { backend });
    const byText = await collect(model, "Grüße", { maxTokens: 30, temperature: 1, seed: 3, stopTokenIds: [] });
    const byIds = await collect(model, [bos, ...Buffer.from("Grüße")], { maxTokens: 30, temperature: 1, seed: 3, stopTokenIds: [] });
    expect(byText).toEqual(byIds);
    expect(byText.text).toBe(model.tokenizer?.decode(byText.ids));
  });

  test("stop tokens, stop strings, the context and the number of tokens end it", async () => {
    const folder = await fakeModel({ contextLength: 40 });
    await using model = await load(folder, { backend });
    const free = await collect(model, "ab", { maxTokens: 30, temperature: 1.5, seed: 1, stopTokenIds: [] });
    const at = 12;
    const stopId = free.ids[at] ?? 0;
    const stopped = await collect(model, "ab", { maxTokens: 30, temperature: 1.5, seed: 1, stopTokenIds: [stopId] });
    expect(stopped.ids).toEqual(free.ids.slice(0, free.ids.indexOf(stopId) + 1));
    expect(stopped.reason).toBe("stop-token");
    expect(free.text.length).toBeGreaterThan(8);
    const stop = free.text.slice(4, 7);
    const cut = await collect(model, "ab", { maxTokens: 30, temperature: 1.5, seed: 1, stopTokenIds: [], stop: ["never", stop] });
    expect(cut.text).toBe(free.text.slice(0, free.text.indexOf(stop)));
    expect(cut.reason).toBe("stop-string");
    const full = await collect(model, "ab", { maxTokens: 100, temperature: 1.5, seed: 1, stopTokenIds: [] });
    expect([full.reason, full.ids.length]).toEqual(["context", 37]);
    expect(free.reason).toBe("length");
  });

  test("the same seed gives the same tokens, another seed others", async () => {
    await using model = await load(await fakeModel(), { backend });
    const run = (seed: number): Promise<{ ids: number[] }> => collect(model, "x", { maxTokens: 20, temperature: 2, topK: 50, topP: 0.95, minP: 0.001, repetitionPenalty: 1.1, seed, stopTokenIds: [] });
    expect((await run(5)).ids).toEqual((await run(5)).ids);
    expect((await run(5)).ids).not.toEqual((await run(6)).ids);
  });

  test("bad options are diagnostics, all at once", async () => {
    await using model = await load(await fakeModel({ contextLength: 8 }), { backend });
    const bad = collect(model, "x", { maxTokens: 0, temperature: -1, topK: 1.5, topP: 0, minP: 2, repetitionPenalty: 0, seed: -1, stop: [""], stopTokenIds: [vocabSize] });
    expect(await codes(bad)).toEqual(new Array(9).fill("runtime/bad-option"));
    expect(await codes(collect(model, []))).toEqual(["runtime/empty-prompt"]);
    expect(await codes(collect(model, "12345678"))).toEqual(["runtime/context-exceeded"]);
    expect(await codes(collect(model, [5, 259]))).toEqual(["runtime/bad-token"]);
    expect(await codes(collect(model, [{ role: "user", content: "hi" }]))).toEqual(["runtime/no-chat-template"]);
    expect(await codes(model.generateBatch([]))).toEqual(["runtime/bad-option"]);
  });

  test("messages go through the chat template, without a second BOS", async () => {
    const chatTemplate = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}bot:{% endif %}";
    await using model = await load(await fakeModel({ chatTemplate }), { backend });
    const chat = await collect(model, [{ role: "user", content: "hi" }], { maxTokens: 5, stopTokenIds: [] });
    expect(chat.ids).toEqual((await collect(model, "user:hi;bot:", { maxTokens: 5, stopTokenIds: [] })).ids);
  });

  test("a model without a tokenizer takes token ids only", async () => {
    await using model = await load(await fakeModel({ tokenizer: false }), { backend });
    expect(model.tokenizer).toBeNull();
    expect(await codes(collect(model, "text"))).toEqual(["runtime/no-tokenizer"]);
    expect(await codes(collect(model, [1], { stop: ["x"] }))).toEqual(["runtime/no-tokenizer"]);
    const { ids, text } = await collect(model, [1, 2], { maxTokens: 3, stopTokenIds: [] });
    expect([ids.length, text]).toEqual([3, ""]);
  });

  test("leaving the loop early ends the generation, and the model goes on", async () => {
    await using model = await load(await fakeModel(), { backend });
    const generation = model.generate("x", { stopTokenIds: [] });
    for await (const { tokenId } of generation) {
      expect(tokenId).toBeTypeOf("number");
      break;
    }
    expect(generation.stats).toBeUndefined();
    expect((await collect(model, "x", { maxTokens: 3, stopTokenIds: [] })).ids).toHaveLength(3);
  });

  test("two generations at once give what each gives alone", async () => {
    await using model = await load(await fakeModel(), { backend });
    const options = { maxTokens: 25, temperature: 1, seed: 2, stopTokenIds: [] };
    const alone = [await collect(model, "one", options), await collect(model, "another prompt", options)];
    expect(await Promise.all([collect(model, "one", options), collect(model, "another prompt", options)])).toEqual(alone);
  });

  test("two models run side by side and close on their own", async () => {
    await using first = await load(await fakeModel(), { backend });
    const second = await load(await fakeModel({ seed: 2 }), { backend });
    const [a, b] = await Promise.all([collect(first, "q", { maxTokens: 8 }), collect(second, "q", { maxTokens: 8 })]);
    expect(a.ids).not.toEqual(b.ids);
    await second.close();
    expect((await collect(first, "q", { maxTokens: 8 })).ids).toEqual(a.ids);
  });
});

describe.each(backends)("generateBatch on the %s backend", (backend) => {
  test("each row is what it is alone, and stops on its own", async () => {
    await using model = await load(await fakeModel({ contextLength: 60 }), { backend });
    const prompts = ["a", "a longer prompt than the others", "mid size", [bos, 9, 8, 7]];
    const options = { maxTokens: 40, temperature: 1.2, seed: 11, stopTokenIds: [eos, 65, 66, 67], stop: ["z", "é"], chunk: 5 };
    const batch = await model.generateBatch(prompts, options);
    for (const [row, prompt] of prompts.entries()) {
      const alone = await collect(model, prompt, options);
      expect({ ids: batch[row]?.tokenIds, text: batch[row]?.text, reason: batch[row]?.stats.stopReason }).toEqual(alone);
    }
    expect(new Set(batch.map(({ tokenIds }) => tokenIds.length)).size).toBeGreaterThan(1);
  });
});

describe.each(backends)("the event loop and aborting on the %s backend", (backend) => {
  test("timers fire while a run is under way", async () => {
    await using model = await load(await fakeModel({ ballast: 900 }), { backend });
    let [ticks, longest, last] = [0, 0, performance.now()];
    const timer = setInterval(() => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      ticks++;
    }, 5);
    const started = performance.now();
    await collect(model, "x", { maxTokens: 12, stopTokenIds: [] });
    const elapsed = performance.now() - started;
    clearInterval(timer);
    // On the calling thread one run of the ballast would block every timer for its whole length.
    expect(elapsed).toBeGreaterThan(100);
    expect(ticks).toBeGreaterThan(elapsed / 5 / 4);
    expect(longest).toBeLessThan(elapsed / 3);
  });

  test("an abort during a long prefill rejects at once with its reason; the model stays usable", async () => {
    await using model = await load(await fakeModel({ ballast: 900 }), { backend });
    const controller = new AbortController();
    const reason = new Error("changed my mind");
    const started = performance.now();
    setTimeout(() => controller.abort(reason), 60);
    const prompt = Array.from({ length: 400 }, (_, i) => i % 250);
    await expect(collect(model, prompt, { chunk: 1, signal: controller.signal })).rejects.toBe(reason);
    expect(performance.now() - started).toBeLessThan(1000);
    await expect(collect(model, prompt, { signal: controller.signal })).rejects.toBe(reason);
    await expect(model.generateBatch([prompt], { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
    expect((await collect(model, [1, 2], { maxTokens: 2, stopTokenIds: [] })).ids).toHaveLength(2);
  });

  test("an abort while decoding ends the stream", async () => {
    await using model = await load(await fakeModel(), { backend });
    const controller = new AbortController();
    const ids: number[] = [];
    const run = (async () => {
      for await (const { tokenId } of model.generate("x", { signal: controller.signal, stopTokenIds: [], maxTokens: 1000 })) {
        ids.push(tokenId);
        if (ids.length === 5) controller.abort();
      }
    })();
    await expect(run).rejects.toMatchObject({ name: "AbortError" });
    expect(ids).toHaveLength(5);
  });

  test("closing waits for the run under way; later calls are refused", async () => {
    const model = await load(await fakeModel({ ballast: 900 }), { backend });
    const state = await model.createState();
    const running = model.forward(state, [[1, 2, 3]]);
    await Promise.resolve();
    const closing = model.close();
    expect((await running)[0]?.length).toBe(vocabSize);
    await closing;
    expect(await codes(model.forward(state, [[1]]))).toEqual(["runtime/closed"]);
  });

  test.each([
    ["ends by itself with an idle model", ""],
    ["process.exit in the middle of a run", "model.forward(await model.createState(), [[1, 2, 3]]); setTimeout(() => process.exit(0), 40); await new Promise(() => {});"],
  ])("a process that never closes its model: %s", async (_, code) => {
    const folder = await fakeModel({ ballast: 1500 });
    const script = `import { load } from ${JSON.stringify(new URL("../../dist/runtime/index.js", import.meta.url).href)}; const model = await load(${JSON.stringify(folder)}, { backend: "${backend}" }); ${code}`;
    const child = spawnSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8", timeout: 30_000 });
    expect({ status: child.status, signal: child.signal, stderr: child.stderr }).toEqual({ status: 0, signal: null, stderr: "" });
  });
});
