// One block of Jamba-v0.1 (examples/jamba-v0.1.ts) at full size, with embedding and output projection.
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm } from "layerweave";

export default model({
  name: "jamba-v0.1-block",
  vocabSize: 65_536,
  dModel: 4096,
  norm: rmsNorm({ eps: 1e-6 }),
  contextLength: 262_144,
  blocks: 1,
  block: block({
    layers: 8,
    mixer: ratio(
      { attention: 1, mamba: 7 },
      { at: 4, attention: attention({ nHeads: 32, nKvHeads: 8, position: none() }), mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 256, innerNorm: rmsNorm() }) },
    ),
    channelMixer: every(2, moe({ nExperts: 16, topK: 2, dFf: 14_336 }), { offset: 1, otherwise: mlp({ dFf: 14_336 }) }),
  }),
});
