// Mixtral-8x7B (arXiv 2401.04088): attention everywhere, eight experts everywhere, the two chosen ones weighted to sum to 1.
import { attention, block, model, moe, rmsNorm, rope, softmaxThenTopK } from "layerweave";

export default model({
  name: "mixtral-8x7b",
  vocabSize: 32_000,
  dModel: 4096,
  norm: rmsNorm({ eps: 1e-5 }),
  contextLength: 32_768,
  blocks: 32,
  block: block({
    layers: 1,
    mixer: attention({ nHeads: 32, nKvHeads: 8, position: rope({ theta: 1_000_000 }) }),
    channelMixer: moe({ nExperts: 8, topK: 2, dFf: 14_336, router: softmaxThenTopK({ renormalise: true }) }),
  }),
});
