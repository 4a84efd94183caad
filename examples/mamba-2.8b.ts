// Mamba-2.8B (arXiv 2312.00752): nothing but Mamba layers, and the embedding as output projection.
import { block, mamba, model, rmsNorm } from "layerweave";

export default model({
  name: "mamba-2.8b",
  vocabSize: 50_280,
  dModel: 2560,
  norm: rmsNorm({ eps: 1e-5 }),
  tieEmbeddings: true,
  blocks: 64,
  block: block({ layers: 1, mixer: mamba() }),
});
