// Layouts in Jamba's proportions, compiled with random weights for benchmarks.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";
import { checkedLayout, compile } from "layerweave/compiler";

const jamba = ({ name, blocks, vocabSize, dModel, headDim, dFf, nExperts }) =>
  model({
    name,
    vocabSize,
    dModel,
    norm: rmsNorm({ eps: 1e-6 }),
    contextLength: 262_144,
    blocks,
    block: block({
      layers: 8,
      mixer: ratio(
        { attention: 1, mamba: 7 },
        {
          at: 4,
          attention: attention({ nHeads: dModel / headDim, nKvHeads: dModel / headDim / 4, position: none() }),
          mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: dModel / 16, innerNorm: rmsNorm() }),
        },
      ),
      channelMixer: every(2, moe({ nExperts, topK, dFf }), { offset: 1, otherwise: mlp({ dFf }) }),
    }),
  });

export const topK = 2;

export const layouts = {
  /** One block with half of Jamba-v0.1's experts, 0.43B parameters. */
  small: jamba({ name: "jamba-0.4b", blocks: 1, vocabSize: 32_768, dModel: 1024, headDim: 64, dFf: 2816, nExperts: 8 }),
  /** Jamba-v0.1 in little: its vocabulary, 16 experts, widths in its proportions, two of its four blocks. 1.0B parameters. */
  large: jamba({ name: "jamba-1b", blocks: 2, vocabSize: 65_536, dModel: 768, headDim: 64, dFf: 2688, nExperts: 16 }),
};

/** The folder in which a layout is compiled, made once. */
export async function compiled(layout, quantize) {
  const out = join(import.meta.dirname, "..", "..", "out", `${layout.name}-${quantize}`);
  if (!existsSync(join(out, "manifest.json"))) await compile(checkedLayout(layout), { out, weights: { from: "random", seed: 1 }, quantize });
  return out;
}
