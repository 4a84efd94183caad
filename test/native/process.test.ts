// What the native runtime does to the process it lives in.
import { copyFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { fakeModel, removeFakes } from "../runtime/fake-model.js";
import { noNative } from "../support/backends.js";
import { temporaryFolder } from "../support/folders.js";
import { runScript } from "./scripts.js";

const require = createRequire(import.meta.url);
const out = await temporaryFolder();
afterAll(removeFakes);

const clean = { status: 0, signal: null, stderr: "" };

describe.skipIf(noNative !== undefined)("a process with the native runtime", () => {
  // bench/load-cycles.mjs does so 1,000 times.
  test("loads and closes 200 times without growing", async () => {
    const folder = JSON.stringify(await fakeModel());
    const ended = await runScript(`
      const cycle = async () => {
        const model = await load(${folder}, { backend: "native", threads: 2 });
        const state = await model.createState({ batch: 3 });
        await model.forward(state, [[1, 2, 3], [4], [5, 6]], { logits: "all" });
        const snapshot = await state.snapshot();
        await model.forward(state, [[1], [2], [3]]);
        await state.restore(snapshot);
        await model.close();
      };
      const resident = () => { gc(); gc(); return process.memoryUsage.rss(); };
      const samples = [];
      for (let i = 0; i < 300; i++) {
        if (i >= 100 && i % 10 === 0) samples.push(resident());
        await cycle();
      }
      const middle = (values) => values.sort((a, b) => a - b)[values.length / 2];
      console.log(middle(samples.slice(10)) - middle(samples.slice(0, 10)));
    `);
    expect(ended).toMatchObject(clean);
    // What allocators hold on to goes up and down by ten megabytes from one cycle to the next; a session that stays takes more than one.
    expect(Number(ended.stdout)).toBeLessThan(15e6);
  });

  test("frees models that were forgotten unclosed, and ends with one open", async () => {
    const folder = JSON.stringify(await fakeModel());
    const ended = await runScript(`
      const { readdirSync } = await import("node:fs");
      const threads = () => readdirSync("/proc/self/task").length;
      const open = async () => { const model = await load(${folder}, { backend: "native", threads: 1 }); await model.createState(); };
      await open();
      const before = threads();
      for (let i = 0; i < 20; i++) await open();
      for (let i = 0; i < 100 && threads() > before; i++) { gc(); await new Promise((done) => setTimeout(done, 20)); }
      console.log(threads() <= before);
      await open();
    `);
    expect(ended).toEqual({ ...clean, stdout: "true\n" });
  });

  test("runs portable and native models beside each other, with one copy of ONNX Runtime or with two", async () => {
    const folder = JSON.stringify(await fakeModel());
    const script = `
      const models = [];
      for (const backend of ["portable", "native", "portable", "native"]) models.push(await load(${folder}, { backend, threads: 1 }));
      const states = await Promise.all(models.map((model) => model.createState()));
      const logits = [];
      for (let i = 0; i < 5; i++) logits.push(await Promise.all(models.map(async (model, m) => (await model.forward(states[m], [[i, i + 1, 7]]))[0])));
      await models[0].close();
      await models[1].close();
      logits.push(await Promise.all([2, 3].map(async (m) => (await models[m].forward(states[m], [[9]]))[0])));
      const same = logits.every((row) => row.every((one) => JSON.stringify(one) === JSON.stringify(row[0])));
      const { readFileSync } = await import("node:fs");
      const copies = new Set(readFileSync("/proc/self/maps", "utf8").match(/\\S*libonnxruntime\\S*/g)).size;
      console.log(same, copies);
      for (const model of models) await model.close();
    `;
    expect(await runScript(script)).toEqual({ ...clean, stdout: "true 1\n" });
    const library = join(dirname(require.resolve("onnxruntime-node/package.json")), "bin", "napi-v6", process.platform, process.arch, "libonnxruntime.so.1");
    await copyFile(library, join(out, "libonnxruntime.so.1"));
    expect(await runScript(script, { LAYERWEAVE_ORT_DIR: out })).toEqual({ ...clean, stdout: "true 2\n" });
  });

  test("is there twice: in the main thread and in a worker, at once", async () => {
    const folder = JSON.stringify(await fakeModel());
    const ended = await runScript(`
      const { Worker } = await import("node:worker_threads");
      const code = \`
        const { parentPort } = require("node:worker_threads");
        import(${JSON.stringify(new URL("../../dist/runtime/index.js", import.meta.url).href)}).then(async ({ load }) => {
          const model = await load(${folder}, { backend: "native", threads: 1 });
          const state = await model.createState();
          let logits;
          for (let i = 0; i < 50; i++) [logits] = await model.forward(state, [[i]]);
          await model.close();
          parentPort.postMessage(logits);
        });\`;
      const elsewhere = [1, 2].map(() => new Promise((resolve, reject) => {
        const worker = new Worker(code, { eval: true, execArgv: [] });
        worker.once("message", resolve);
        worker.once("error", reject);
      }));
      const model = await load(${folder}, { backend: "native", threads: 1 });
      const state = await model.createState();
      let logits;
      for (let i = 0; i < 50; i++) [logits] = await model.forward(state, [[i]]);
      const same = (await Promise.all(elsewhere)).every((other) => other.every((value, i) => value === logits[i]));
      // The workers are gone; the libraries must not be.
      const [next] = await model.forward(state, [[1]]);
      console.log(same, next.length);
      await model.close();
    `);
    expect(ended).toEqual({ ...clean, stdout: "true 259\n" });
  });

  test("outlives a worker that is terminated in the middle of a run, again and again", async () => {
    const folder = await fakeModel({ ballast: 900 });
    const ended = await runScript(`
      const { Worker } = await import("node:worker_threads");
      const code = \`
        const { parentPort } = require("node:worker_threads");
        import(${JSON.stringify(new URL("../../dist/runtime/index.js", import.meta.url).href)}).then(async ({ load }) => {
          const model = await load(${JSON.stringify(folder)}, { backend: "native", threads: 1 });
          const state = await model.createState();
          parentPort.postMessage("running");
          for (;;) await model.forward(state, [[1, 2, 3, 4, 5]]);
        });\`;
      let longest = 0;
      for (let i = 0; i < 6; i++) {
        const worker = new Worker(code, { eval: true, execArgv: [] });
        await new Promise((resolve, reject) => { worker.once("message", resolve); worker.once("error", reject); });
        await new Promise((done) => setTimeout(done, 15 * i));
        const started = performance.now();
        await worker.terminate();
        longest = Math.max(longest, performance.now() - started);
      }
      const model = await load(${JSON.stringify(folder)}, { backend: "native" });
      const [logits] = await model.forward(await model.createState(), [[1]]);
      console.log(logits.length, longest < 3000);
    `);
    expect(ended).toEqual({ ...clean, stdout: "259 true\n" });
  });

  test("outlives workers that are terminated while answers to their calls arrive", async () => {
    const folder = await fakeModel();
    const ended = await runScript(`
      const { Worker } = await import("node:worker_threads");
      const code = \`
        const { parentPort } = require("node:worker_threads");
        import(${JSON.stringify(new URL("../../dist/runtime/index.js", import.meta.url).href)}).then(async ({ load }) => {
          const model = await load(${JSON.stringify(folder)}, { backend: "native", threads: 1 });
          const state = await model.createState();
          parentPort.postMessage("running");
          for (;;) {
            await model.forward(state, [[1, 2]]);
            const snapshot = await state.snapshot();
            await state.restore(snapshot);
            await snapshot[Symbol.asyncDispose]();
          }
        });\`;
      for (let i = 0; i < 25; i++) {
        const worker = new Worker(code, { eval: true, execArgv: [] });
        await new Promise((resolve, reject) => { worker.once("message", resolve); worker.once("error", reject); });
        await new Promise((done) => setTimeout(done, i % 8));
        await worker.terminate();
      }
      console.log("alive");
    `);
    expect(ended).toEqual({ ...clean, stdout: "alive\n" });
  });

  test("outlives a worker that is terminated while it loads", async () => {
    const folder = await fakeModel({ ballast: 900 });
    const ended = await runScript(`
      const { Worker } = await import("node:worker_threads");
      const code = \`
        const { parentPort } = require("node:worker_threads");
        import(${JSON.stringify(new URL("../../dist/runtime/index.js", import.meta.url).href)}).then(async ({ load }) => {
          const loading = Array.from({ length: 8 }, () => load(${JSON.stringify(folder)}, { backend: "native", threads: 1 }));
          parentPort.postMessage("loading");
          await Promise.all(loading);
        });\`;
      for (let i = 0; i < 5; i++) {
        const worker = new Worker(code, { eval: true, execArgv: [] });
        await new Promise((resolve, reject) => { worker.once("message", resolve); worker.once("error", reject); });
        await new Promise((done) => setTimeout(done, 5 * i));
        await worker.terminate();
      }
      console.log("alive");
    `);
    expect(ended).toEqual({ ...clean, stdout: "alive\n" });
  });
});
