import { describe, expect, test } from "vitest";
import { printLayoutFile } from "../../compiler/importers/print-layout.js";
import { checkedLayout } from "../../compiler/lower.js";
import * as dsl from "../../dsl/index.js";
import type { ModelSpec } from "../../dsl/model.js";
import { falconMamba7b, fixtureConfig, fixtureNames, imported, jambaV01, llama31, mamba130m } from "./configs.js";
import { evaluateLayout } from "./evaluate.js";

async function roundTrip(spec: ModelSpec): Promise<string> {
  const text = await printLayoutFile(spec);
  const again = await evaluateLayout(text);
  expect(again).toEqual(spec);
  expect(checkedLayout(again)).toEqual(checkedLayout(spec));
  return text;
}

describe("a printed layout evaluates to the layout it was printed from", () => {
  test.each(fixtureNames)("%s", async (name) => {
    await roundTrip(imported(fixtureConfig(name), name).spec);
  });

  test("published configs", async () => {
    for (const config of [jambaV01, llama31, mamba130m, falconMamba7b]) await roundTrip(imported(config).spec);
  });

  test("everything that the DSL can say", async () => {
    const { attention, block, every, layer, linearScaling, llama3Scaling, mamba, mlp, model, moe, none, pattern, ratio, repeat, rmsNorm, rope, softmaxThenTopK, topKThenSoftmax, yarnScaling } = dsl;
    const attend = attention({ nHeads: 4, nKvHeads: 2, headDim: 32, position: rope({ theta: 123_456.5, scaling: yarnScaling({ factor: 4, originalContext: 2048, betaFast: 16, attentionFactor: 1.25 }) }), window: 16, qkvBias: true, outBias: true });
    const scan = mamba({ dState: 8, dConv: 3, expand: 1.5, dtRank: 3, convBias: false, projBias: true, innerNorm: { dt: rmsNorm(), b: rmsNorm({ eps: 1.5e-7 }), c: rmsNorm({ weight: false }) } });
    await roundTrip(
      model({
        name: 'quoted "name"',
        vocabSize: 1_234_567,
        dModel: 64,
        contextLength: 1_000_000,
        norm: rmsNorm({ eps: 0.00125 }),
        finalNorm: rmsNorm({ eps: 1e-9, weight: false }),
        tieEmbeddings: true,
        layers: [
          layer({ mixer: attend, norm: rmsNorm({ weight: false }) }),
          layer({ channelMixer: moe({ nExperts: 4, topK: 2, dFf: 32, router: topKThenSoftmax() }) }),
          repeat(2, block({ layers: [pattern("M*-E", { M: scan, "*": attend, "-": mlp({ dFf: 32, bias: true }), E: layer({ mixer: mamba(), channelMixer: mlp({ dFf: 10_001 }) }) })] })),
          block({
            layers: 6,
            mixer: ratio({ mamba: 2, attention: 1 }, { at: [0, 2], mamba: scan, attention: attention({ nHeads: 4, position: rope({ scaling: linearScaling({ factor: 2 }) }) }) }),
            channelMixer: every(3, moe({ nExperts: 4, topK: 2, dFf: 32, router: softmaxThenTopK({ renormalise: true }) }), { otherwise: mlp({ dFf: 8 }) }),
            norm: rmsNorm({ eps: 1e-8 }),
          }),
          block({
            layers: 5,
            mixer: every(5, attention({ nHeads: 2, position: rope({ scaling: llama3Scaling({ factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 }) }) }), { offset: 2, otherwise: every(2, mamba(), { otherwise: attention({ nHeads: 8, position: none() }) }) }),
          }),
        ],
        overrides: { 3: { mixer: mamba({ dState: 4 }) }, 9: { norm: rmsNorm({ eps: 0.5 }), channelMixer: mlp({ dFf: 7 }) } },
      }),
    );
  });
});

test("Jamba-v0.1 is printed as a person would write it", async () => {
  expect(await printLayoutFile(imported(jambaV01, "Jamba-v0.1").spec)).toMatchInlineSnapshot(`
    "import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";

    export default model({
      name: "Jamba-v0.1",
      vocabSize: 65_536,
      dModel: 4096,
      contextLength: 262_144,
      norm: rmsNorm({ eps: 1e-6 }),
      blocks: 4,
      block: block({
        layers: 8,
        mixer: ratio({ attention: 1, mamba: 7 }, {
          at: 4,
          attention: attention({ nHeads: 32, nKvHeads: 8, position: none() }),
          mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 256, innerNorm: rmsNorm() }),
        }),
        channelMixer: every(2, moe({ nExperts: 16, topK: 2, dFf: 14_336 }), { offset: 1, otherwise: mlp({ dFf: 14_336 }) }),
      }),
    });
    "
  `);
});

test("a Llama is one layer, repeated", async () => {
  expect(await printLayoutFile(imported(llama31, "Llama-3.1-8B").spec)).toMatchInlineSnapshot(`
    "import { attention, layer, llama3Scaling, mlp, model, repeat, rmsNorm, rope } from "layerweave";

    export default model({
      name: "Llama-3.1-8B",
      vocabSize: 128_256,
      dModel: 4096,
      contextLength: 131_072,
      norm: rmsNorm({ eps: 1e-5 }),
      layers: [
        repeat(32, layer({
          mixer: attention({
            nHeads: 32,
            nKvHeads: 8,
            position: rope({
              theta: 500_000,
              scaling: llama3Scaling({ factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 }),
            }),
          }),
          channelMixer: mlp({ dFf: 14_336 }),
        })),
      ],
    });
    "
  `);
});
