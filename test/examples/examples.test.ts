// Every example does what it says: layouts compile, the application serves.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadLayout } from "#dist/cli/load-layout.js";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const layouts = readdirSync(inRepository("examples")).filter((file) => file.endsWith(".ts"));

/** Total and active parameters as published (arXiv 2403.19887, 2408.12570, 2401.04088 and the model cards), to the digits given there. */
const published: Readonly<Record<string, readonly [number, number]>> = {
  "jamba-v0.1.ts": [51.57e9, 12.11e9],
  "jamba-1.5-large.ts": [398.56e9, 94.15e9],
  "mixtral-8x7b.ts": [46.7e9, 12.88e9],
  "mistral-7b.ts": [7.24e9, 7.24e9],
  "llama-2-7b.ts": [6.74e9, 6.74e9],
  "llama-2-70b.ts": [68.98e9, 68.98e9],
  "mamba-2.8b.ts": [2.77e9, 2.77e9],
};

test.each(layouts)("%s compiles, with the number of parameters that was published, if any was", async (file) => {
  const layout = checkedLayout((await loadLayout(inRepository("examples", file))).model({}));
  const { manifest } = await compile(layout, { out: join(out, file), weights: { from: "none" } });
  const numbers = published[file];
  if (!numbers) return;
  const [total, active] = numbers;
  expect(Math.abs(manifest.model.parameters.total / total - 1)).toBeLessThan(1e-3);
  expect(Math.abs(manifest.model.parameters.active / active - 1)).toBeLessThan(1e-3);
});

test("every layout with published numbers is there", () => {
  expect(layouts).toEqual(expect.arrayContaining(Object.keys(published)));
});

test("story-server.mjs streams, reports mistakes, and goes on after a reader has left", async () => {
  const checkpoint = await importCheckpoint(inRepository("examples/tiny-jamba"));
  const folder = join(out, "tiny-jamba");
  await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint } });
  const server = spawn(process.execPath, [inRepository("examples/story-server.mjs"), folder, "0"], { stdio: ["ignore", "ignore", "pipe"] });
  try {
    let said = "";
    while (!said.includes("listening")) said += String((await once(server.stderr, "data"))[0]);
    const url = /http:\S+/.exec(said)?.[0] ?? "";
    const ask = (prompt: string, maxTokens: string, signal: AbortSignal | null = null) => fetch(`${url}/?maxTokens=${maxTokens}`, { method: "POST", body: prompt, signal });

    const story = await ask("In the beginning ", "12");
    expect(story.status).toBe(200);
    expect((await story.text()).length).toBeGreaterThan(10);

    const mistake = await ask("x", "-5");
    expect([mistake.status, await mistake.text()]).toEqual([400, expect.stringContaining("runtime/bad-option")]);

    const leaving = new AbortController();
    const long = await ask("In the ", "5000", leaving.signal);
    await long.body?.getReader().read();
    leaving.abort();
    expect((await (await ask("King ", "4")).text()).length).toBeGreaterThan(0);
  } finally {
    server.kill("SIGINT");
    if (server.exitCode === null) await once(server, "exit");
  }
  expect(server.exitCode).toBe(0);
});
