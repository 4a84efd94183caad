// A layout that no checkpoint has: three Mamba layers for each attention layer, the attention looking back 2048 positions
// except in the last block, which sees everything; small experts in every third layer.
import { attention, block, every, mamba, mlp, model, moe, none, ratio, rmsNorm, topKThenSoftmax } from "layerweave";

const heads = { nHeads: 16, nKvHeads: 4, position: none() };
const lookout = (window?: number) =>
  block({
    layers: 4,
    mixer: ratio(
      { attention: 1, mamba: 3 },
      { at: 3, attention: attention(window === undefined ? heads : { ...heads, window }), mamba: mamba({ innerNorm: rmsNorm() }) },
    ),
    channelMixer: every(3, moe({ nExperts: 8, topK: 2, dFf: 2048, router: topKThenSoftmax() }), { offset: 2, otherwise: mlp({ dFf: 4096 }) }),
  });

export default model({
  name: "lookout-1b",
  vocabSize: 32_768,
  dModel: 1536,
  norm: rmsNorm({ eps: 1e-6 }),
  tieEmbeddings: true,
  contextLength: 131_072,
  layers: [lookout(2048), lookout(2048), lookout(2048), lookout(2048), lookout()],
});
