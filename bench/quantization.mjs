// What int8 weights cost in accuracy: of every checkpoint fixture the logits against the float32 model's, and of tiny-jamba the
// perplexity of a text it was not trained on (test/fixtures/tiny-jamba/held-out.txt, written for this).
//   npm run build && node bench/quantization.mjs          the tables of docs/quantization.md
//   node bench/quantization.mjs --json
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { load } from "layerweave/runtime";

const root = join(import.meta.dirname, "..");
const modes = ["none", "experts-int8", "int8"];
const fixtures = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"];

/** Logits of each token of each prompt, each prompt fed whole to a state of its own, with weights stored in each mode. */
async function logitsByMode(source, idsOf) {
  const checkpoint = await importCheckpoint(source);
  const out = await mkdtemp(join(tmpdir(), "layerweave-bench-"));
  const results = {};
  try {
    for (const quantize of modes) {
      const { manifest } = await compile(checkedLayout(checkpoint.spec), { out: join(out, quantize), weights: { from: "checkpoint", checkpoint }, quantize });
      const model = await load(join(out, quantize));
      const prompts = idsOf(model);
      const logits = [];
      try {
        for (const ids of prompts) {
          const state = await model.createState();
          logits.push((await model.forward(state, [ids], { logits: "all" }))[0]);
          await state[Symbol.asyncDispose]();
        }
      } finally {
        await model.close();
      }
      results[quantize] = { prompts, logits, vocab: manifest.model.vocabSize, bytes: manifest.weights.reduce((sum, w) => sum + w.bytes, 0) };
    }
  } finally {
    await rm(out, { recursive: true, force: true });
  }
  return results;
}

const rowsOf = ({ logits, vocab }) => logits.flatMap((all) => Array.from({ length: all.length / vocab }, (_, t) => all.subarray(t * vocab, (t + 1) * vocab)));
const best = (row) => row.reduce((top, x, i) => (x > row[top] ? i : top), 0);

/** ‖Δ‖ / ‖reference‖, the largest |Δ|, and the share of positions whose best token is the same. */
function compare(actual, reference) {
  const [a, b] = [rowsOf(actual), rowsOf(reference)];
  let [difference, norm, largest, same] = [0, 0, 0, 0];
  a.forEach((row, t) => {
    row.forEach((x, i) => {
      const delta = x - b[t][i];
      difference += delta ** 2;
      norm += b[t][i] ** 2;
      largest = Math.max(largest, Math.abs(delta));
    });
    if (best(row) === best(b[t])) same++;
  });
  return { relativeError: Math.sqrt(difference / norm), maxAbsError: largest, sameBest: same / a.length };
}

/** exp of the mean surprise of each token after the first of a prompt. */
function perplexity({ prompts, logits, vocab }) {
  let [surprise, count] = [0, 0];
  prompts.forEach((ids, p) => {
    for (let t = 1; t < ids.length; t++, count++) {
      const row = logits[p].subarray((t - 1) * vocab, t * vocab);
      const most = row.reduce((a, b) => Math.max(a, b), -Infinity);
      surprise += most + Math.log(row.reduce((sum, x) => sum + Math.exp(x - most), 0)) - row[ids[t]];
    }
  });
  return { tokens: count, perplexity: Math.exp(surprise / count) };
}

const errors = [];
for (const name of fixtures) {
  // 4 prompts of 128 tokens, the same for every run and every mode.
  const prompts = Array.from({ length: 4 }, (_, p) => Array.from({ length: 128 }, (_, t) => (t * 37 + p * 101 + ((t * t) % 13) * 11 + 5) % 320));
  const results = await logitsByMode(join(root, "test", "fixtures", "hf", name), () => prompts);
  errors.push({ name, ...Object.fromEntries(modes.slice(1).map((mode) => [mode, compare(results[mode], results.none)])) });
}

const text = await readFile(join(root, "test", "fixtures", "tiny-jamba", "held-out.txt"), "utf8");
const results = await logitsByMode(join(root, "examples", "tiny-jamba"), ({ tokenizer }) => text.trim().split("\n\n").map((paragraph) => tokenizer.encode(paragraph)));
const heldOut = modes.map((mode) => ({ mode, bytes: results[mode].bytes, ...perplexity(results[mode]), ...compare(results[mode], results.none) }));

if (process.argv.includes("--json")) console.log(JSON.stringify({ errors, heldOut }));
else {
  const percent = (x, digits) => `${(100 * x).toFixed(digits)} %`;
  const [float] = heldOut;
  console.log("| weights | bytes | perplexity | against float | logits: ‖Δ‖ / ‖float‖ | same best token |\n|---|---|---|---|---|---|");
  for (const { mode, bytes, perplexity: value, relativeError, sameBest } of heldOut)
    console.log(`| ${mode} | ${(bytes / 2 ** 20).toFixed(2)} MiB | ${value.toFixed(3)} | ${mode === "none" ? "" : `${value < float.perplexity ? "-" : "+"}${percent(Math.abs(value / float.perplexity - 1), 2)}`} | ${mode === "none" ? "" : percent(relativeError, 2)} | ${mode === "none" ? "" : percent(sameBest, 1)} |`);
  console.log(`\n${float.tokens} tokens.\n`);
  console.log("| checkpoint | experts-int8: ‖Δ‖ / ‖float‖ | largest \\|Δ\\| | same best token | int8: ‖Δ‖ / ‖float‖ | largest \\|Δ\\| | same best token |\n|---|---|---|---|---|---|---|");
  for (const { name, ...byMode } of errors)
    console.log(`| ${name} | ${modes.slice(1).map((mode) => `${percent(byMode[mode].relativeError, 2)} | ${byMode[mode].maxAbsError.toFixed(4)} | ${percent(byMode[mode].sameBest, 1)}`).join(" | ")} |`);
}
