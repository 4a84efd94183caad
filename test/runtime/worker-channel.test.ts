import { describe, expect, test } from "vitest";
import { WorkerChannel } from "#dist/runtime/backends/worker-channel.js";
import { originInMessage } from "#dist/runtime/backends/portable.js";
import { codes, rejection } from "./diagnostics.js";

/** A worker from source text: it answers `echo`, and otherwise does what it is asked to. */
const script = new URL(
  `data:text/javascript,${encodeURIComponent(`
    import { parentPort } from "node:worker_threads";
    parentPort.on("message", ({ id, request }) => {
      if (request === "echo") parentPort.postMessage({ id, value: "echo" });
      if (request === "problem") parentPort.postMessage({ id, problem: "no such thing" });
      if (request === "throw") throw new Error("out of luck");
      if (request === "exit") process.exit(7);
      if (request === "close") { parentPort.postMessage({ id }); parentPort.close(); }
    });
  `)}`,
);

describe("WorkerChannel", () => {
  test("matches replies to calls, and problems to rejections", async () => {
    const channel = new WorkerChannel<string, null>(script, null);
    expect(await Promise.all([channel.call("echo"), channel.call("echo")])).toEqual(["echo", "echo"]);
    await expect(channel.call("problem")).rejects.toMatchObject({ name: "WorkerProblem", message: "no such thing" });
    await channel.call("close");
    await channel.ended();
  });

  test("many threads listen for the end of the process once, and not at all when they are gone", async () => {
    const before = process.listenerCount("exit");
    const channels = Array.from({ length: 12 }, () => new WorkerChannel<string, null>(script, null));
    expect(process.listenerCount("exit")).toBe(before + 1);
    await Promise.all(
      channels.map(async (channel) => {
        await channel.call("close");
        await channel.ended();
      }),
    );
    expect(process.listenerCount("exit")).toBe(before);
  });

  test.each([
    ["throw", "out of luck"],
    ["exit", "code 7"],
  ])("when the thread ends unasked (%s), all pending calls and later ones are rejected with the reason", async (how, reason) => {
    const channel = new WorkerChannel<string, null>(script, null);
    await channel.call("echo");
    const pending = [rejection(channel.call("never answered")), rejection(channel.call("never answered either")), rejection(channel.call(how))];
    for (const [problem] of await Promise.all(pending)) {
      expect(problem?.code).toBe("runtime/worker-stopped");
      expect(problem?.message).toContain(reason);
    }
    expect(await codes(channel.call("echo"))).toEqual(["runtime/worker-stopped"]);
    await channel.ended();
  });
});

describe("originInMessage", () => {
  const origins = { "/layers.1/mlp": { path: "one" }, "/layers.1/mlp/up": { path: "up", at: { file: "a.ts", line: 1, column: 2 } }, "/layers.11/mlp": { path: "eleven" } };

  test("takes the longest node name that stands alone in the message", () => {
    expect(originInMessage("while running MatMul node. Name:'/layers.1/mlp/up' Status", origins)).toEqual({ path: "up", at: { file: "a.ts", line: 1, column: 2 } });
    expect(originInMessage("Node (/layers.11/mlp) Op (Add)", origins)).toEqual({ path: "eleven" });
    expect(originInMessage("Node (/layers.1/mlp) Op (Add)", origins)).toEqual({ path: "one" });
    expect(originInMessage("Node (/layers.1/mlpx) Op (Add)", origins)).toBeUndefined();
  });
});
