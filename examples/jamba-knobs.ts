// Jamba as a function of the knobs that its paper studies (arXiv 2403.19887): how many layers a block has for its one attention layer,
// how often experts stand in for the MLP, how many experts there are, and how many of them a token visits.
//   layerweave sweep examples/jamba-knobs.ts --knob blockLayers=4,8,16 --knob nExperts=4,8,16 --knob topK=1,2 --context 8K,256K
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";

interface Knobs {
  /** Attention to Mamba is 1 : blockLayers - 1. */
  readonly blockLayers?: number;
  readonly blocks?: number;
  /** Every moePeriod-th layer has experts; 0: none has. */
  readonly moePeriod?: number;
  readonly nExperts?: number;
  readonly topK?: number;
  readonly dModel?: number;
}

export default ({ blockLayers = 8, blocks = 32 / blockLayers, moePeriod = 2, nExperts = 16, topK = 2, dModel = 4096 }: Knobs) => {
  const dFf = 3.5 * dModel;
  const dense = mlp({ dFf });
  const heads = attention({ nHeads: dModel / 128, nKvHeads: dModel / 512, position: none() });
  return model({
    name: "jamba-knobs",
    vocabSize: 65_536,
    dModel,
    norm: rmsNorm({ eps: 1e-6 }),
    contextLength: 262_144,
    blocks,
    block: block({
      layers: blockLayers,
      mixer:
        blockLayers === 1
          ? heads
          : ratio({ attention: 1, mamba: blockLayers - 1 }, { at: Math.floor(blockLayers / 2), attention: heads, mamba: mamba({ innerNorm: rmsNorm() }) }),
      channelMixer: moePeriod === 0 ? dense : every(moePeriod, moe({ nExperts, topK, dFf }), { offset: moePeriod - 1, otherwise: dense }),
    }),
  });
};
