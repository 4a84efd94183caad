// Layouts in Jamba's proportions, compiled with random weights for benchmarks.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";
import { checkedLayout, compile } from "layerweave/compiler";

export const experts = { nExperts: 8, topK: 2 };

const jamba = ({ name, blocks, dFf }) =>
  model({
    name,
    vocabSize: 32_768,
    dModel: 1024,
    norm: rmsNorm({ eps: 1e-6 }),
    contextLength: 262_144,
    blocks,
    block: block({
      layers: 8,
      mixer: ratio(
        { attention: 1, mamba: 7 },
        { at: 4, attention: attention({ nHeads: 16, nKvHeads: 4, position: none() }), mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 64, innerNorm: rmsNorm() }) },
      ),
      channelMixer: every(2, moe({ ...experts, dFf }), { offset: 1, otherwise: mlp({ dFf }) }),
    }),
  });

export const layouts = {
  /** One block, 0.43B parameters. */
  small: jamba({ name: "jamba-0.4b", blocks: 1, dFf: 2816 }),
  /** Two blocks with experts of 3.5 times dModel, as Jamba-v0.1's: 0.96B parameters. */
  large: jamba({ name: "jamba-1b", blocks: 2, dFf: 3584 }),
};

/** The folder in which a layout is compiled, made once. */
export async function compiled(layout, quantize) {
  const out = join(import.meta.dirname, "..", "..", "out", `${layout.name}-${quantize}`);
  if (!existsSync(join(out, "manifest.json"))) await compile(checkedLayout(layout), { out, weights: { from: "random", seed: 1 }, quantize });
  return out;
}
