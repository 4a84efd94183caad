import { rmsNorm } from "../../../dsl/norms.js";
import { importDiagnostics } from "../diagnostics.js";
import type { Importer } from "../importer.js";
import { mambaTensors, readMambaStack } from "./mamba.js";
import { ignoredTensors, sourcesFrom } from "./sources.js";

/** Mamba with RMS norms without learned scale on dt, B and C. */
export const falconMamba: Importer = {
  modelTypes: ["falcon_mamba"],

  toModel: (config) => {
    const dModel = config.count("hidden_size");
    const expand = config.count("expand", 2);
    const dInner = config.optionalCount("intermediate_size");
    if (dInner !== undefined && dInner !== expand * dModel) config.report(importDiagnostics["expand-overruled"], { expand, hiddenSize: dModel, intermediateSize: dInner });
    return readMambaStack(config, {
      dModel,
      expand: dInner === undefined ? expand : dInner / dModel,
      innerNorm: rmsNorm({ eps: config.positive("mixer_rms_eps", 1e-6), weight: false }),
    });
  },

  sources: sourcesFrom(mambaTensors),
  ignoredTensors,
};
