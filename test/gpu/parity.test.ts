// Logits against transformers (float32): what is left is rounding to 16 bits.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { verify } from "layerweave/runtime";
import { dtypes, type GpuDtype, inRepository, onCard, open } from "./machine.js";

/**
 * What rounding a fixture's weights alone does to its logits, relative, with all else in float32: `layerweave verify` of the
 * portable folder compiled with `--dtype`. Fixtures differ tenfold: Mamba's gates and Jamba's depth amplify what goes in, and
 * in bfloat16 one of Mixtral's tokens takes another expert.
 */
const ofWeights: Readonly<Record<string, Readonly<Record<GpuDtype, number>>>> = {
  "jamba-block": { bfloat16: 7.27e-2, float16: 7.13e-3 },
  "jamba-two-blocks": { bfloat16: 7.59e-2, float16: 6.76e-3 },
  "jamba-dense": { bfloat16: 2.11e-2, float16: 3.14e-3 },
  mixtral: { bfloat16: 4.87e-2, float16: 8.48e-4 },
  llama: { bfloat16: 7.11e-3, float16: 9.22e-4 },
  "mistral-swa": { bfloat16: 7.22e-3, float16: 9.07e-4 },
  mamba: { bfloat16: 2.7e-2, float16: 2.32e-3 },
  "falcon-mamba": { bfloat16: 2.45e-2, float16: 2.53e-3 },
};

/** What transformers itself is off by in these types. */
const { relativeError: ofTransformers } = JSON.parse(readFileSync(inRepository("test", "fixtures", "half-precision.json"), "utf8")) as { relativeError: Readonly<Record<string, Readonly<Record<GpuDtype, number>>>> };

/** On average over the fixtures, of transformers'. */
const ofTransformersAtMost = 1.2;

/** Activations and state are rounded too, time and again: as much once more, and some room. */
const factor = 3;

describe("fixtures", onCard, () => {
  const measured = { bfloat16: new Map<string, number>(), float16: new Map<string, number>() };
  for (const [name, rounding] of Object.entries(ofWeights))
    for (const dtype of dtypes)
      test(`${name} in ${dtype}: prompts whole and in pieces`, async (t) => {
        await using model = await open(name, dtype, { context: 512 });
        const { relativeError, maxAbsError, splits, stepRelativeError } = await verify(model, inRepository("test", "fixtures", "hf", name, "reference.safetensors"));
        t.diagnostic(`${name} ${dtype}: relative ${relativeError.toExponential(2)}, splits ${Object.values(splits).map((e) => e.toExponential(2)).join(" ")}, steps ${stepRelativeError?.toExponential(2)}, one logit ${maxAbsError.toExponential(2)}`);
        measured[dtype].set(name, relativeError);
        for (const error of [relativeError, ...Object.values(splits)]) assert.ok(error <= factor * rounding[dtype], `${error} > ${factor} × ${rounding[dtype]}`);
      });

  for (const dtype of dtypes)
    test(`${dtype} on average, beside transformers`, (t) => {
      const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
      const names = Object.keys(ofTransformers);
      assert.deepEqual([...measured[dtype].keys()].sort(), names.toSorted());
      const [ours, theirs] = [mean([...measured[dtype].values()]), mean(names.map((name) => ofTransformers[name]?.[dtype] ?? NaN))];
      t.diagnostic(`${dtype}: ${ours.toExponential(2)} on average, transformers ${theirs.toExponential(2)}`);
      assert.ok(ours <= ofTransformersAtMost * theirs, `${ours} > ${ofTransformersAtMost} × ${theirs}`);
    });
});

describe("tiny-jamba", onCard, () => {
  const { greedy } = JSON.parse(readFileSync(inRepository("test", "fixtures", "tiny-jamba", "reference.json"), "utf8")) as { greedy: Record<string, { ids: number[]; text: string }> };
  for (const dtype of dtypes)
    test(`writes its reference texts in ${dtype}`, async () => {
      await using model = await open("tiny-jamba", dtype);
      for (const [prompt, { ids, text }] of Object.entries(greedy)) {
        const prompted = model.tokenizer?.encode(prompt) ?? [];
        let written = prompt;
        for await (const piece of model.generate(prompt, { maxTokens: ids.length - prompted.length })) written += piece.text;
        assert.equal(written, text);
      }
    });
});
