import { attention, layer, mamba, mlp, model, moe, rmsNorm, rope, softmaxThenTopK } from "../../../dsl/index.js";

// Every op that the CUDA target has: int8 and 16-bit weights, merged biases, norms without a scale, a tied output projection.
export default model({
  name: "cuda-hybrid",
  vocabSize: 29,
  dModel: 24,
  tieEmbeddings: true,
  norm: rmsNorm({ eps: 1e-6 }),
  layers: [
    layer({ mixer: mamba({ dState: 6, dConv: 3, dtRank: 5, innerNorm: rmsNorm({ weight: false }) }), channelMixer: mlp({ dFf: 40 }) }),
    layer({
      mixer: attention({ nHeads: 4, nKvHeads: 2, headDim: 8, window: 9, qkvBias: true, position: rope({ theta: 1000 }) }),
      channelMixer: moe({ nExperts: 3, topK: 2, dFf: 24, router: softmaxThenTopK({ renormalise: true }) }),
    }),
  ],
});
