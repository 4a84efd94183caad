import { attention, block, every, mamba, mlp, model, moe, ratio, rmsNorm } from "../../../dsl/index.js";

// The block of Jamba: attention among Mamba layers, experts in every other layer.
export default model({
  name: "jamba-block",
  vocabSize: 31,
  dModel: 24,
  norm: rmsNorm({ eps: 1e-6 }),
  blocks: 1,
  block: block({
    layers: 3,
    mixer: ratio({ attention: 1, mamba: 2 }, {
      at: 1,
      attention: attention({ nHeads: 6, nKvHeads: 2, headDim: 10 }),
      mamba: mamba({ dState: 9, dConv: 4, expand: 2, dtRank: 7, innerNorm: rmsNorm() }),
    }),
    channelMixer: every(2, moe({ nExperts: 5, topK: 3, dFf: 28 }), { offset: 1, otherwise: mlp({ dFf: 36 }) }),
  }),
});
