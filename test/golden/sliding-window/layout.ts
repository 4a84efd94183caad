import { attention, layer, llama3Scaling, mlp, model, repeat, rmsNorm, rope, yarnScaling } from "../../../dsl/index.js";

const scaled = rope({ theta: 500_000, scaling: llama3Scaling({ factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 64 }) });

// Rotary attention with grouped queries, a window and all biases; the last layer turns its heads otherwise and sees everything.
export default model({
  name: "sliding-window",
  vocabSize: 37,
  dModel: 20,
  norm: rmsNorm({ eps: 1e-5 }),
  contextLength: 512,
  layers: [
    repeat(2, layer({ mixer: attention({ nHeads: 6, nKvHeads: 3, headDim: 12, position: scaled, window: 5, qkvBias: true, outBias: true }), channelMixer: mlp({ dFf: 26, bias: true }) })),
  ],
  overrides: { 1: { mixer: attention({ nHeads: 4, nKvHeads: 1, headDim: 14, position: rope({ scaling: yarnScaling({ factor: 4, originalContext: 32 }) }) }) } },
});
