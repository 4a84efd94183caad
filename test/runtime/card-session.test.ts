// How a session on a card speaks to the addon, which is stood in for: no card is needed.
import { afterAll, describe, expect, test } from "vitest";
import type { AddonSession, NativeRuntime } from "#dist/runtime/backends/native-addon.js";
import { openSession } from "#dist/runtime/backends/native.js";
import { readManifest } from "#dist/runtime/load.js";
import { rejection } from "./diagnostics.js";
import { fakeModel, removeFakes } from "./fake-model.js";

afterAll(removeFakes);

const card = { ordinal: 0, graphs: true, arenaBytes: 0, weights: [] };

/** A session on a card over an addon that can do nothing else. */
async function sessionOver(addon: Partial<AddonSession>) {
  const folder = await fakeModel();
  const native = { addon: { openSession: async () => addon }, library: "", version: "", kernels: { reason: "" }, cudaKernels: "" } as unknown as NativeRuntime;
  return openSession(native, "", { folder, manifest: await readManifest(folder), threads: 1, cudaGraphs: true, mappedWeights: false, arenaBytes: 0 }, card);
}

const run = { state: 0, inputIds: BigInt64Array.of(5n), pastLengths: [0], lengths: [1], logitIndices: BigInt64Array.of(0n) };

describe("what the addon says becomes a diagnostic", () => {
  test.each([
    ["CUDA failed at what ran before (cudaErrorIllegalAddress: an illegal memory access was encountered): the card's context is lost", "runtime/card-lost", /can't be used by this process any more: .*cudaErrorIllegalAddress/],
    ["Non-zero status code returned while running AttentionInner node. Name:'/layers.0/attention/total' Status Message: the launch failed (cudaErrorInvalidValue)", "runtime/run-failed", /AttentionInner/],
    ["no memory for a buffer of 9 bytes on the card (cudaErrorMemoryAllocation: out of memory)", "runtime/out-of-memory", /The card has no memory to run the model/],
  ])("%s", async (problem, code, message) => {
    const failing = (): Promise<never> => Promise.reject(new Error(problem));
    const session = await sessionOver({ forward: failing, decode: () => ({ done: failing(), stop: () => undefined }) });
    const expected = [{ code, message: expect.stringMatching(message) }];
    expect(await rejection(session.forward(run))).toMatchObject(expected);
    const decoding = session.sampling?.decode({ state: 0, inputIds: [5], pastLengths: [0], limits: [1], stopTokenIds: [] }, 0, () => undefined);
    expect(await rejection(decoding?.done ?? Promise.resolve())).toMatchObject(expected);
  });
});

test("tokens of steps are told of as they come, without those of rows that took no part", async () => {
  const told: (readonly (number | undefined)[])[] = [];
  let stopped = false;
  const session = await sessionOver({
    decode: (state, inputIds, pastLengths, limits, stopTokens, sampler, onTokens) => {
      expect([state, [...inputIds], [...pastLengths], [...limits], [...stopTokens], sampler]).toEqual([3, [5n, 0n], [7n, 1n], [2n, 0n], [9n], 4]);
      onTokens(BigInt64Array.of(6n, -2n));
      onTokens(BigInt64Array.of(-1n, -2n));
      return { done: Promise.resolve(), stop: () => void (stopped = true) };
    },
  });
  const decoding = session.sampling?.decode({ state: 3, inputIds: [5, 0], pastLengths: [7, 1], limits: [2, 0], stopTokenIds: [9] }, 4, (tokens) => told.push(tokens));
  await decoding?.done;
  expect(told).toEqual([[6, undefined], [-1, undefined]]); // prettier-ignore
  decoding?.stop();
  expect(stopped).toBe(true);
});

test("logits go to memory that was lent, and are no more than were asked for", async () => {
  const lent = Float32Array.of(0, 0, 0, 0);
  const session = await sessionOver({
    pinnedLogits: async (count) => lent.subarray(0, count),
    forwardInto: async (...[, , , , , into]) => {
      into.set([1, 2, 3]);
      return 3;
    },
  });
  const into = await session.lendLogits?.(4);
  const logits = await session.forward(run, into);
  expect([...logits]).toEqual([1, 2, 3]);
  expect(logits.buffer).toBe(lent.buffer);
});
