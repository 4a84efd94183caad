import { attention, mamba, mlp, model, moe, pattern, rmsNorm, softmaxThenTopK } from "../../../dsl/index.js";

// One half per layer, as Nemotron-H writes its stacks.
export default model({
  name: "half-layers",
  vocabSize: 19,
  dModel: 12,
  norm: rmsNorm(),
  layers: pattern("M*-E", {
    M: mamba({ dState: 6, dConv: 3, dtRank: 5 }),
    "*": attention({ nHeads: 4, nKvHeads: 2, headDim: 8 }),
    "-": mlp({ dFf: 22 }),
    E: moe({ nExperts: 3, topK: 1, dFf: 14, router: softmaxThenTopK({ renormalise: true }) }),
  }),
});
