// Joins what bench/h100/run.sh left in a folder into one results file.
//   node bench/h100/collect.mjs <folder> <result.json>
import { execFileSync } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

const [folder, file] = process.argv.slice(2);
if (folder === undefined || file === undefined) throw new Error("usage: node bench/h100/collect.mjs <folder> <result.json>");
const commit = process.env.COMMIT;
if (!commit) throw new Error("COMMIT names what was measured");

const text = (name) => readFile(join(folder, name), "utf8").catch((error) => (error.code === "ENOENT" ? undefined : Promise.reject(error)));
const json = async (name) => {
  const found = await text(name);
  return found === undefined ? undefined : JSON.parse(found);
};

/** The lines of kernels/test/run-all.sh: name, result, seconds, what the test said last. */
const testLines = async (name) =>
  (await text(name))?.split("\n").flatMap((line) => {
    const [, test, result, seconds, said] = /^(\S.*?)\s{2,}(passed|skipped|FAILED \(\d+\))\s+(\d+) s\s+(.*)$/.exec(line) ?? [];
    return test === undefined ? [] : [{ test, result, seconds: Number(seconds), said }];
  });

/** The lines of decode_chain_bench, in seconds. */
const chainLines = async (name) =>
  (await text(name))?.split("\n").flatMap((line) => {
    const [, batch, median, best, bits] = /^batch +(\d+): +([\d.]+) us a step, best +([\d.]+), (.*)$/.exec(line) ?? [];
    return batch === undefined ? [] : [{ batch: Number(batch), stepSeconds: Number(median) / 1e6, best: Number(best) / 1e6, bits }];
  });

const [card, driver] = execFileSync("nvidia-smi", ["--query-gpu=name,driver_version", "--format=csv,noheader"], { encoding: "utf8" }).trim().split("\n")[0].split(", ");
const parts = {
  kernelTests: await testLines("tests.txt"),
  sanitizer: await testLines("sanitize.txt"),
  kernels: await json("kernels-card.json"),
  experts: await json("moe-card.json"),
  attention: await json("attention-card.json"),
  decodeChain: await chainLines("chain.txt"),
  throughNode: await json("node.json"),
  jambaBlock: await json("block.json"),
};
for (const [name, part] of Object.entries(parts)) {
  if (part === undefined) console.log(`${name} was not run`);
  // A folder may hold what another card left.
  else if (part.card !== undefined && !card.includes(part.card) && !part.card.includes(card)) throw new Error(`${name} was measured on ${part.card}, this is ${card}`);
}
/** Lists of results an item a line, everything else of a part a field a line. */
const lines = (value, depth) =>
  depth === 0 || typeof value !== "object" || value === null
    ? JSON.stringify(value)
    : Array.isArray(value)
      ? `[\n${value.map((item) => lines(item, depth - 1)).join(",\n")}\n]`
      : `{\n${Object.entries(value).filter(([, field]) => field !== undefined).map(([name, field]) => `${JSON.stringify(name)}: ${lines(field, depth - 1)}`).join(",\n")}\n}`;
await writeFile(file, `${lines({ card, driver, date: new Date().toISOString(), commit, ...parts }, 3)}\n`);
