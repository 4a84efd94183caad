// Llama-2-7B (arXiv 2307.09288): every head has its own keys and values.
import { attention, block, mlp, model, rmsNorm, rope } from "layerweave";

export default model({
  name: "llama-2-7b",
  vocabSize: 32_000,
  dModel: 4096,
  norm: rmsNorm({ eps: 1e-5 }),
  contextLength: 4096,
  blocks: 32,
  block: block({ layers: 1, mixer: attention({ nHeads: 32, position: rope() }), channelMixer: mlp({ dFf: 11_008 }) }),
});
