// Mistral-7B-v0.1 (arXiv 2310.06825): grouped queries, and a window of 4096 positions.
import { attention, block, mlp, model, rmsNorm, rope } from "layerweave";

export default model({
  name: "mistral-7b",
  vocabSize: 32_000,
  dModel: 4096,
  norm: rmsNorm({ eps: 1e-5 }),
  contextLength: 32_768,
  blocks: 32,
  block: block({
    layers: 1,
    mixer: attention({ nHeads: 32, nKvHeads: 8, position: rope(), window: 4096 }),
    channelMixer: mlp({ dFf: 14_336 }),
  }),
});
