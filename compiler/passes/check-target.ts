import type { Diagnostics } from "../../core/diagnostics.js";
import type { Layout } from "../../dsl/resolve.js";
import { checkWidths } from "../rules/definition.js";
import { rulesOf } from "../rules/index.js";
import type { KernelLimits } from "../targets/target.js";

/** Reports everything in a checked layout that the kernels of a target do not take. Equal mistakes of one spec are reported once. */
export function checkTarget(layout: Layout, limits: KernelLimits, found: Diagnostics): void {
  checkWidths(layout, ["dModel"], "model", limits, found);
  const seen = new Set<string>();
  layout.layers.forEach((layer, i) => {
    for (const half of ["mixer", "channelMixer"] as const) {
      const spec = layer[half];
      const key = JSON.stringify(spec);
      if (!spec || seen.has(key)) continue;
      seen.add(key);
      rulesOf(spec).checkLimits(spec, `layers[${i}].${half}`, limits, found);
    }
  });
}
