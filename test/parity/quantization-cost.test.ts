// int8 weights cost tiny-jamba less than 1 % of perplexity, and docs/quantization.md says what bench/quantization.mjs measures.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { inRepository } from "../support/folders.js";

interface Cost {
  readonly relativeError: number;
}

const { errors, heldOut } = JSON.parse(execFileSync("node", [inRepository("bench", "quantization.mjs"), "--json"], { encoding: "utf8" })) as {
  readonly errors: readonly ({ readonly name: string } & Readonly<Record<"experts-int8" | "int8", Cost>>)[];
  readonly heldOut: readonly ({ readonly mode: string; readonly tokens: number; readonly perplexity: number } & Cost)[];
};
/** Rows of the tables in the docs, by their first cell; numbers without their units. */
const documented = new Map(
  readFileSync(inRepository("docs", "quantization.md"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("| "))
    .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()))
    .map(([name, ...cells]) => [name as string, cells.map((cell) => Number.parseFloat(cell))]),
);

test.each(heldOut.slice(1))("$mode: perplexity within 1 % of the float model's", ({ perplexity, tokens }) => {
  const float = heldOut[0]?.perplexity ?? Number.NaN;
  expect(tokens).toBeGreaterThan(500);
  expect(Math.abs(perplexity / float - 1)).toBeLessThanOrEqual(0.01);
});

test.each(heldOut)("the documented perplexity with $mode", ({ mode, perplexity }) => {
  expect(Math.abs(perplexity / (documented.get(mode)?.[1] ?? Number.NaN) - 1)).toBeLessThanOrEqual(1e-3);
});

test.each(errors)("the documented logit errors of $name", ({ name, ...byMode }) => {
  const cells = documented.get(name) ?? [];
  // Kernels of other processors round otherwise, and a router near a tie may then choose otherwise.
  for (const [mode, cell] of [["experts-int8", cells[0]], ["int8", cells[3]]] as const) expect(Math.abs(100 * byMode[mode].relativeError - (cell ?? Number.NaN)), mode).toBeLessThanOrEqual(0.005 + 0.1 * (cell ?? 0));
});
