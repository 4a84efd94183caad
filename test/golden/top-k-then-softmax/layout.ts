import { attention, layer, model, moe, rmsNorm, topKThenSoftmax } from "../../../dsl/index.js";

// Experts chosen before the softmax, and matrices stored in bfloat16.
export default model({
  name: "top-k-then-softmax",
  vocabSize: 23,
  dModel: 16,
  norm: rmsNorm({ weight: false }),
  finalNorm: rmsNorm({ eps: 1e-3 }),
  layers: [layer({ mixer: attention({ nHeads: 5, nKvHeads: 1, headDim: 6 }), channelMixer: moe({ nExperts: 4, topK: 3, dFf: 18, router: topKThenSoftmax() }) })],
});
