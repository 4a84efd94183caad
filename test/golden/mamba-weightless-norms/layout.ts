import { block, mamba, model, rmsNorm } from "../../../dsl/index.js";

// Mamba alone, as in falcon_mamba: norms of dt, B and C that have no weight. Every optional bias is the other way round.
export default model({
  name: "mamba-weightless-norms",
  vocabSize: 29,
  dModel: 40,
  norm: rmsNorm({ eps: 1e-5 }),
  tieEmbeddings: true,
  blocks: 1,
  block: block({
    layers: 2,
    mixer: mamba({ dState: 7, dConv: 5, expand: 1.5, innerNorm: rmsNorm({ eps: 1e-6, weight: false }), convBias: false, projBias: true }),
  }),
});
