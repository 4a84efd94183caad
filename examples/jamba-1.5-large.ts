// Jamba-1.5-Large (arXiv 2408.12570): the same block as Jamba-v0.1, twice as wide, nine times.
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";

export default model({
  name: "jamba-1.5-large",
  vocabSize: 65_536,
  dModel: 8192,
  norm: rmsNorm({ eps: 1e-6 }),
  contextLength: 262_144,
  blocks: 9,
  block: block({
    layers: 8,
    mixer: ratio(
      { attention: 1, mamba: 7 },
      {
        at: 4,
        attention: attention({ nHeads: 64, nKvHeads: 8, position: none() }),
        mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 512, innerNorm: rmsNorm() }),
      },
    ),
    channelMixer: every(2, moe({ nExperts: 16, topK: 2, dFf: 24_576 }), { offset: 1, otherwise: mlp({ dFf: 24_576 }) }),
  }),
});
