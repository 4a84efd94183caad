// Layouts whose plans are held to what a card's driver says: one of each kind, a few times as large as what runs them.
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm, rope } from "layerweave";

const uniform = (name, layers, dModel, mixer, channelMixer) =>
  model({ name, vocabSize: 32_000, dModel, norm: rmsNorm({ eps: 1e-6 }), contextLength: 32_768, blocks: layers, block: block({ layers: 1, mixer, ...(channelMixer && { channelMixer }) }) });

/** Name → layout, and what of it is int8. */
export const memoryLayouts = {
  "memory-dense": { layout: uniform("memory-dense", 10, 2048, attention({ nHeads: 16, nKvHeads: 4, position: rope({ theta: 10_000 }) }), mlp({ dFf: 5632 })), quantize: "none" },
  "memory-window": { layout: uniform("memory-window", 10, 2048, attention({ nHeads: 16, nKvHeads: 16, window: 1024, position: rope({ theta: 10_000 }) }), mlp({ dFf: 8192 })), quantize: "int8" },
  "memory-mamba": { layout: uniform("memory-mamba", 24, 1536, mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 96 })), quantize: "none" },
  "memory-experts": { layout: uniform("memory-experts", 6, 2048, attention({ nHeads: 16, nKvHeads: 4, position: rope({ theta: 10_000 }) }), moe({ nExperts: 16, topK: 2, dFf: 2048 })), quantize: "experts-int8" },
  "memory-hybrid": {
    layout: model({
      name: "memory-hybrid",
      vocabSize: 32_000,
      dModel: 1024,
      norm: rmsNorm({ eps: 1e-6 }),
      contextLength: 32_768,
      blocks: 1,
      block: block({
        layers: 8,
        mixer: ratio({ attention: 1, mamba: 7 }, { at: 4, attention: attention({ nHeads: 16, nKvHeads: 4, position: none() }), mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 64, innerNorm: rmsNorm() }) }),
        channelMixer: every(2, moe({ nExperts: 16, topK: 2, dFf: 3584 }), { offset: 1, otherwise: mlp({ dFf: 3584 }) }),
      }),
    }),
    quantize: "int8",
  },
};
