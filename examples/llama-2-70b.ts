// Llama-2-70B (arXiv 2307.09288): eight query heads share each key/value head.
import { attention, block, mlp, model, rmsNorm, rope } from "layerweave";

export default model({
  name: "llama-2-70b",
  vocabSize: 32_000,
  dModel: 8192,
  norm: rmsNorm({ eps: 1e-5 }),
  contextLength: 4096,
  blocks: 80,
  block: block({ layers: 1, mixer: attention({ nHeads: 64, nKvHeads: 8, position: rope() }), channelMixer: mlp({ dFf: 28_672 }) }),
});
