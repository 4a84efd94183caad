import type { Diagnostics } from "../../core/diagnostics.js";
import { dslDiagnostics } from "../../dsl/diagnostics.js";
import { originOf } from "../../core/origin.js";
import type { Layout } from "../../dsl/resolve.js";
import { checkCounts, checkPositive } from "../rules/definition.js";
import { rulesOf } from "../rules/index.js";

/** Reports everything in a layout that the DSL's types can't rule out. Equal mistakes of one spec are reported once. */
export function checkLayout(layout: Layout, found: Diagnostics): void {
  const model = { dModel: layout.dModel, nLayers: layout.layers.length };
  checkCounts(layout, ["vocabSize", "dModel"], "model", found);
  if (layout.contextLength !== null) checkCounts(layout as Layout & { readonly contextLength: number }, ["contextLength"], "model", found);
  if (layout.name === "") found.report(dslDiagnostics["wrong-type"], { field: "name", expected: "some text", found: '""' }, originOf(layout, "model.name"));
  checkPositive(layout.finalNorm, ["eps"], "finalNorm", found);
  const seen = new Set<string>();
  layout.layers.forEach((layer, i) => {
    const halves = [
      ["norm", layer.norm],
      ["mixer", layer.mixer],
      ["channelMixer", layer.channelMixer],
    ] as const;
    for (const [name, spec] of halves) {
      const key = spec && JSON.stringify(spec);
      if (!spec || !key || seen.has(`${name}${key}`)) continue;
      seen.add(`${name}${key}`);
      const path = `layers[${i}].${name}`;
      if (spec.kind === "rms-norm") checkPositive(spec, ["eps"], path, found);
      else rulesOf(spec).check(spec, path, model, found);
    }
  });
}
