// A process that is held to an address space (ulimit -v) a little larger than what it has: each step that needs more is refused, and
// what went before goes on. The portable backend can't be tested so, since onnxruntime-node and V8 end the process.
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkedLayout, compile } from "layerweave/compiler";
import * as dsl from "layerweave/dsl";
import { fakeModel, removeFakes } from "../runtime/fake-model.js";
import { noNative } from "../support/backends.js";
import { temporaryFolder } from "../support/folders.js";
import { runScript } from "./scripts.js";

const folder = await temporaryFolder();

afterAll(removeFakes);

beforeAll(async () => {
  const block = dsl.block({ layers: 2, mixer: dsl.attention({ nHeads: 8, position: dsl.rope() }), channelMixer: dsl.mlp({ dFf: 4096 }) });
  const spec = dsl.model({ name: "large", vocabSize: 512, dModel: 1024, contextLength: 8192, norm: dsl.rmsNorm({ eps: 1e-6 }), blocks: 1, block });
  await compile(checkedLayout(spec), { out: `${folder}/large`, weights: { from: "random", seed: 1 } });
});

const prelude = `
  const { readFileSync } = await import("node:fs");
  const report = (value) => console.log(JSON.stringify(value));
  const open = () => load(${JSON.stringify(`${folder}/large`)}, { backend: "native", threads: 2, force: true });
  const refusal = (promise) => promise.then(() => "done", ({ diagnostics: [{ code, message }] }) => [code, message]);
`;

/** Runs `before`, then `after` with so many bytes more of address space than there are between the two, and returns what it reports. */
async function held(before: string, bytes: number, after: string): Promise<unknown[]> {
  const measured = await runScript(`${prelude}${before}; report(Number(/VmSize:\\s+(\\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024); process.exit();`);
  expect(measured).toMatchObject({ status: 0, stderr: "" });
  const ended = await runScript(`${prelude}${before}; ${after}`, {}, Number(measured.stdout) + bytes);
  expect(ended).toMatchObject({ status: 0, signal: null, stderr: "" });
  return ended.stdout.trim().split("\n").map((line) => JSON.parse(line) as unknown);
}

describe.skipIf(noNative !== undefined)("the native backend without memory", () => {
  test.each([
    ["for a thread", 50e6],
    ["for the weights", 150e6],
  ])("%s: the model is not loaded", async (_, bytes) => {
    // The libraries are there already.
    const before = `await (await load(${JSON.stringify(await fakeModel())}, { backend: "native", threads: 1 })).close()`;
    expect(await held(before, bytes, "report(await refusal(open())); report(await refusal(open()));")).toEqual(Array(2).fill(["runtime/out-of-memory", expect.stringMatching(/^The system has no memory to load the model/)]));
  });

  test("for a state: it is not made, a smaller one is", async () => {
    const after = `
      report(await refusal(model.createState({ batch: 16 })));
      const state = await model.createState();
      report((await model.forward(state, [[1, 2]])).length);
      await model.close();`;
    expect(await held("const model = await open()", 150e6, after)).toEqual([["runtime/out-of-memory", expect.stringMatching(/no memory for a state buffer of 536870912 bytes/)], 1]);
  });

  test("for a run: the state is as it was before, and shorter runs go on", async () => {
    const after = `
      report(await refusal(model.forward(state, [Array.from({ length: 6000 }, (_, i) => i % 500)], { logits: "all" })));
      report(state.lengths);
      const [logits] = await model.forward(state, [[3]]);
      report([...(await model.forward(again, [[3]]))[0]].every((value, i) => value === logits[i]));
      await model.close();`;
    const before = `
      const model = await open();
      const [state, again] = [await model.createState(), await model.createState()];
      for (const each of [state, again]) await model.forward(each, [[1, 2]])`;
    expect(await held(before, 120e6, after)).toEqual([["runtime/out-of-memory", expect.stringMatching(/no memory to run the model/)], [2], true]);
  });
});
