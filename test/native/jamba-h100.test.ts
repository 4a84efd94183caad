// bench/jamba-h100 on small shapes without a card: its parts build, plan, run and meet their conditions, and those that are there are left out.
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, test } from "vitest";
import { inRepository, temporaryFolder } from "../support/folders.js";

const folder = await temporaryFolder();
const results = join(folder, "results.json");
const run = async (...parts: string[]): Promise<string> =>
  (await promisify(execFile)(process.execPath, [inRepository("bench", "jamba-h100", "run.mjs"), "--scale", "tiny", "--device", "cpu", "--models", join(folder, "models"), "--results", results, ...parts.flatMap((part) => ["--part", part])])).stdout;

interface Results {
  readonly parts: Readonly<Record<string, { readonly failed?: string; readonly checks: readonly { readonly met: boolean }[]; readonly processes: Readonly<Record<string, { readonly plans?: Readonly<Record<string, { readonly fits: boolean }>> }>> }>>;
}

test("runs parts, and goes on where it was cut off", async () => {
  expect(await run("jamba-plan", "jamba-reuse", "needle")).not.toContain("MISSED");
  const { parts } = JSON.parse(await readFile(results, "utf8")) as Results;
  expect(Object.keys(parts)).toEqual(["jamba-build", "jamba-plan", "jamba-reuse", "tiny-jamba-build", "needle"]);
  expect(Object.values(parts).map(({ failed }) => failed)).toEqual(Object.keys(parts).map(() => undefined));
  expect(parts["jamba-reuse"]?.checks.length).toBe(4);
  expect(parts["needle"]?.checks.length).toBe(2);
  expect(parts["jamba-plan"]?.processes["plans"]?.plans?.["singles"]?.fits).toBe(true);
  const page = await readFile(join(folder, "results.html"), "utf8");
  expect(page).toContain("logits of the follow-up as of a cold run");
  expect(page).toContain("<svg");

  const again = await run("jamba-plan", "needle");
  expect(again.match(/: done on /g)?.length).toBe(2);
  await expect(run("no-such-part")).rejects.toThrow(/there is no part no-such-part/);
});
