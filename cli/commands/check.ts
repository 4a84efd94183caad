import type { ImportedCheckpoint } from "../../compiler/importers/index.js";
import { allParameters } from "../../compiler/ir/block.js";
import { toBlocks } from "../../compiler/lower.js";
import { portable } from "../../compiler/targets/portable.js";
import { bindCheckpoint } from "../../compiler/weights/bind.js";
import { openSafetensors } from "../../compiler/weights/safetensors.js";
import type { Diagnostic } from "../../core/diagnostics.js";
import type { Layout } from "../../dsl/resolve.js";
import { costOf } from "../cost.js";
import { formatCount } from "../format.js";
import { hasWeights, openSource, type SourceOptions } from "../source.js";
import type { Terminal } from "../terminal.js";

/** Reports everything that is wrong with a layout and, in a checkpoint, with its tensors; or what it is when nothing is. */
export async function check(terminal: Terminal, path: string, options: SourceOptions): Promise<void> {
  const source = await openSource(path, options);
  const { layout, kind } = source;
  const weights = source.kind === "checkpoint" ? await checkWeights(source.checkpoint, layout) : undefined;
  const warnings = source.kind === "checkpoint" ? [...source.checkpoint.warnings, ...(weights?.warnings ?? [])] : [];
  const { parameters } = costOf(layout);
  terminal.report(warnings);
  const tensors = weights ? `, ${weights.tensors} tensors in place` : kind === "checkpoint" ? " (its folder holds no weights)" : "";
  terminal.write(`${path} is valid: ${layout.name}, ${layout.layers.length} layers, ${formatCount(parameters.total)} parameters (${formatCount(parameters.active)} active)${tensors}\n`);
  terminal.result({ ok: true, kind, name: layout.name, layers: layout.layers.length, parameters, tensors: weights?.tensors ?? null, warnings });
}

/** Finds every parameter among the tensors of a checkpoint; undefined for a folder with a config alone. */
async function checkWeights({ folder, importer }: ImportedCheckpoint, layout: Layout): Promise<{ readonly tensors: number; readonly warnings: readonly Diagnostic[] } | undefined> {
  if (!(await hasWeights(folder))) return undefined;
  const checkpoint = await openSafetensors(folder);
  const { warnings } = bindCheckpoint(allParameters(toBlocks(layout, portable)), checkpoint, importer, layout);
  return { tensors: checkpoint.tensors.size, warnings };
}
