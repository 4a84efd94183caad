import { originOf } from "../../core/origin.js";
import type { RmsNorm } from "../../dsl/norms.js";
import type { Layout } from "../../dsl/resolve.js";
import type { BlockModel, BlockOp } from "../ir/block.js";
import { matrix, type Parameter, type ParameterSpec, vector } from "../ir/parameter.js";
import { rulesOf } from "../rules/index.js";

/** Layout → block IR: one op per mixer and channel mixer, with the parameters its rules declare. */
export function buildBlocks(layout: Layout): BlockModel {
  const model = { dModel: layout.dModel, nLayers: layout.layers.length };
  const origin = originOf(layout, "model");
  const own = (spec: ParameterSpec): Parameter => ({ ...spec, origin });
  return {
    name: layout.name,
    vocabSize: layout.vocabSize,
    dModel: layout.dModel,
    tieEmbeddings: layout.tieEmbeddings,
    finalNorm: layout.finalNorm,
    ops: layout.layers.flatMap((layer, i) => {
      const half = (role: BlockOp["role"], spec: BlockOp["spec"] | null): BlockOp[] => {
        if (!spec) return [];
        const origin = originOf(spec, `layers[${i}].${role === "mixer" ? "mixer" : "channelMixer"}`);
        const normName = `layers.${i}.${role === "mixer" ? "mixer_norm" : "channel_mixer_norm"}`;
        const parameters = rulesOf(spec).parameters(spec, model);
        return [
          {
            name: `layers.${i}.${spec.kind}`,
            layer: i,
            role,
            spec,
            norm: { name: normName, spec: layer.norm },
            parameters: [
              ...normParameters(normName, layer.norm, layout.dModel).map((p) => ({ ...p, layer: i, origin })),
              ...parameters.map((p) => ({ ...p, name: `layers.${i}.${spec.kind}.${p.name}`, layer: i, origin })),
            ],
            state: [],
            origin,
          },
        ];
      };
      return [...half("mixer", layer.mixer), ...half("channel-mixer", layer.channelMixer)];
    }),
    parameters: [
      own({ ...matrix("embedding.weight", layout.vocabSize, layout.dModel, "embedding"), init: { kind: "uniform", std: 1 / Math.sqrt(layout.dModel) } }),
      ...normParameters("final_norm", layout.finalNorm, layout.dModel).map(own),
      ...(layout.tieEmbeddings ? [] : [own(matrix("lm_head.weight", layout.vocabSize, layout.dModel, "lm-head"))]),
    ],
    origin,
  };
}

function normParameters(name: string, norm: RmsNorm, width: number): readonly ParameterSpec[] {
  return norm.weight ? [vector(`${name}.weight`, [width], "norm", 1)] : [];
}
