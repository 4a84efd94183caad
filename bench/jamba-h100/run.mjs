// Jamba-v0.1 and Mixtral-8x7B at full size on one 80 GB card: built with random int8 weights, planned, loaded one after another
// and measured. Parts that are in the results file already are left out, so a run that was cut off goes on.
//   npm run build && node bench/jamba-h100/run.mjs --models <folder> --results <file.json>
// The folder takes 55 GB at a time; in /dev/shm, loading is from memory. Beside the results lies a page of the same name.
//   --part <name>        only this one; may be repeated          --again             also those that are there already
//   --seconds <n>        starts no part that may not end by then --case-seconds <n>  for the prefill of the largest batches (60)
//   --jamba <folder>     weights of a Hugging Face checkpoint    --mixtral <folder>  instead of random ones
//   --scratch <folder>   for saved states, 9 GB                  --keep              removes no model to make room for another
//   --scale tiny --device cpu   all of it on small shapes, to be tried without a card
// It ends with 1 where a part failed or a condition was missed.
import { execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { cpus, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { comparison, resultsPage } from "./page.mjs";
import { buildSeconds, parts, scales } from "./parts.mjs";

const text = { type: "string" };
const { values: options } = parseArgs({
  options: {
    models: text, results: text, scratch: text, jamba: text, mixtral: text, commit: text, // prettier-ignore
    device: { type: "string", default: "cuda:0" },
    scale: { type: "string", default: "full" },
    seconds: { type: "string", default: "Infinity" },
    "case-seconds": { type: "string", default: "60" },
    part: { type: "string", multiple: true, default: [] },
    again: { type: "boolean", default: false },
    keep: { type: "boolean", default: false },
  },
});
const unknown = options.part.filter((name) => !parts.some((part) => part.name === name));
const wrong = [
  ...(options.models === undefined || options.results === undefined ? ["--models and --results are needed"] : []),
  ...unknown.map((name) => `there is no part ${name}; there are ${parts.map((part) => part.name).join(", ")}`),
  ...(options.scale in scales ? [] : [`--scale is ${Object.keys(scales).join(" or ")}`]),
  ...(Number(options.seconds) > 0 && Number(options["case-seconds"]) > 0 ? [] : ["--seconds and --case-seconds are positive numbers"]),
];
if (wrong.length > 0) {
  console.error(wrong.join("\n"));
  process.exit(2);
}
const started = performance.now();
const models = resolve(options.models);
const file = resolve(options.results);
const scratch = resolve(options.scratch ?? join(models, "scratch"));
const onCard = options.device !== "cpu";
await mkdir(scratch, { recursive: true });

/** What the driver says of the card's memory. */
const nvidiaSmi = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", `--id=${options.device.slice("cuda:".length)}`];
const driverBytes = () => Number(execFileSync("nvidia-smi", nvidiaSmi, { encoding: "utf8" })) * 2 ** 20;

/** What llama.cpp does with Jamba-v0.1's shape on this kind of card, Q8_0. */
const llamaCpp = { release: "0.5.0", decodePerSecond: { "short context": 146, "131,072 deep": 116, "262,080 deep": 99, "batch 4, 8K each": 224, "batch 16, 8K each": 351 }, prefill8192PerSecond: 5906 };

const results = existsSync(file) ? JSON.parse(await readFile(file, "utf8")) : { benchmark: "jamba-h100", parts: {} };
const described = { scale: options.scale, device: options.device, node: process.version, cpu: cpus()[0]?.model ?? null, commit: options.commit ?? null, llamaCpp };
Object.assign(results, described);
if (onCard) [results.card, results.driver] = execFileSync("nvidia-smi", ["--query-gpu=name,driver_version", "--format=csv,noheader"], { encoding: "utf8" }).trim().split("\n")[0].split(", ");

async function write() {
  results.comparison = comparison(results).map(({ prompt, tokens, batches, jamba, mixtral, ratios, explanation }) => ({ prompt, tokens, batches, rows: [jamba.batch, mixtral.batch], ratios, explanation }));
  const put = async (path, content) => {
    await writeFile(`${path}.part`, content);
    await rename(`${path}.part`, path);
  };
  // A part a line, and no more digits than were measured.
  const line = (value) => JSON.stringify(value, (_, inner) => (typeof inner === "number" && !Number.isInteger(inner) ? Number(inner.toPrecision(5)) : inner));
  const { parts: recorded, ...rest } = results;
  await put(file, `${line(rest).slice(0, -1)},"parts":{\n${Object.entries(recorded).map(([name, part]) => `${JSON.stringify(name)}:${line(part)}`).join(",\n")}\n}}\n`);
  await put(file.replace(/(\.json)?$/, ".html"), resultsPage(results));
}

/** Runs one process of a part, while the driver is asked what the card's memory is used for. */
async function runProcess(which, model, seconds) {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-bench-"));
  const [request, result] = [join(folder, "request.json"), join(folder, "result.json")];
  const before = onCard ? driverBytes() : null;
  const watch = onCard ? spawn("nvidia-smi", [...nvidiaSmi, "-lms", "500"], { stdio: ["ignore", "pipe", "ignore"] }) : undefined;
  let most = before;
  watch?.stdout.on("data", (chunk) => {
    for (const line of String(chunk).trim().split("\n")) if (Number(line) > 0) most = Math.max(most, Number(line) * 2 ** 20);
  });
  try {
    await writeFile(request, JSON.stringify({ name: model, models, scratch, device: options.device, scale: options.scale, keep: options.keep, checkpoints: { jamba: options.jamba, mixtral: options.mixtral }, caseSeconds: Number(options["case-seconds"]), rowSeconds: rowSeconds(model) }));
    const errors = [];
    const child = spawn(process.execPath, ["--max-old-space-size=8192", join(import.meta.dirname, "parts.mjs"), which, request, result], { stdio: ["ignore", "ignore", "pipe"] });
    child.stderr.on("data", (chunk) => errors.push(chunk));
    const timer = setTimeout(() => child.kill("SIGKILL"), 1000 * seconds);
    const [code, signal] = await new Promise((settle) => child.on("close", (...end) => settle(end)));
    clearTimeout(timer);
    if (code !== 0) throw new Error(`${which} ${signal ? `was ended (${signal}) after ${seconds.toFixed(0)} s` : `failed with ${code}`}: ${Buffer.concat(errors).toString("utf8").trim().slice(-1500)}`);
    return { ...JSON.parse(await readFile(result, "utf8")), driver: onCard ? { before, most } : null };
  } finally {
    watch?.kill();
    await rm(folder, { recursive: true });
  }
}

/** Seconds that one row's prefill took, by its tokens: of the part of single sequences. */
function rowSeconds(model) {
  const cases = results.parts[model]?.processes?.singles?.cases;
  return cases && Object.fromEntries(cases.map(({ prompt, prefillSeconds }) => [prompt, prefillSeconds]));
}

/** The card's memory as the driver says it, against the plan: of processes that did what was planned and nothing beside it. */
function memoryChecks(which, { plan, driver }) {
  if (which !== "singles" || !driver) return [];
  const [taken, total] = [driver.most - driver.before, plan.bytes.total];
  return [
    { what: "the card's memory at most, bytes", wanted: 80e9, found: driver.most, met: driver.most <= 80e9 },
    { what: "the plan against the driver", wanted: "within 2 %", found: `${total} planned, ${taken} taken (${((total / taken - 1) * 100).toFixed(2)} %)`, met: Math.abs(total / taken - 1) <= 0.02 },
  ];
}

async function runPart({ name, model, processes, seconds }) {
  const start = performance.now();
  const record = { date: new Date().toISOString(), model, processes: {}, checks: [] };
  results.parts[name] = record;
  try {
    for (const which of processes) {
      const { checks, ...result } = await runProcess(which, model, seconds - (performance.now() - start) / 1000);
      record.processes[which] = result;
      record.checks.push(...checks, ...memoryChecks(which, result));
    }
  } catch (error) {
    record.failed = error.message;
  }
  record.seconds = (performance.now() - start) / 1000;
  await write();
  console.log(`${name}: ${record.failed ? `FAILED: ${record.failed}` : "done"}, ${record.seconds.toFixed(1)} s`);
  for (const { cases = [] } of Object.values(record.processes))
    for (const { batch, prompt, prefillSeconds, decodePerSecond, settledPerSecond, endToEndPerSecond, fractions } of cases)
      console.log(`  ${batch} x ${prompt}: prefill ${prefillSeconds.toFixed(3)} s (${percent(fractions.prefill)}), decode ${(settledPerSecond ?? decodePerSecond).toFixed(1)}/s (${percent(fractions.decode)}), end to end ${endToEndPerSecond.toFixed(1)}/s`);
  for (const { what, wanted, found, met } of record.checks) console.log(`  ${met ? "met" : "MISSED"}: ${what}: wanted ${wanted}, found ${found}`);
}

const percent = (fraction) => `${(100 * fraction).toFixed(0)} %`;

const left = () => Number(options.seconds) - (performance.now() - started) / 1000;
const done = ({ name }) => results.parts[name] !== undefined && results.parts[name].failed === undefined;
for (const part of parts) {
  if (options.part.length > 0 && !options.part.includes(part.name)) continue;
  if (done(part) && !options.again) {
    console.log(`${part.name}: done on ${results.parts[part.name].date}`);
    continue;
  }
  const built = existsSync(join(models, part.model, "manifest.json"));
  const needed = part.seconds + (built ? 0 : buildSeconds[part.model]);
  if (left() < needed) {
    console.log(`${part.name}: not started, it may take ${needed} s and ${left().toFixed(0)} s are left`);
    continue;
  }
  if (!built) await runPart({ name: `${part.model}-build`, model: part.model, processes: ["build"], seconds: buildSeconds[part.model] });
  await runPart(part);
}
await write();
await rm(scratch, { recursive: true });
process.exitCode = Object.values(results.parts).some(({ failed, checks }) => failed !== undefined || checks.some(({ met }) => !met)) ? 1 : 0;
