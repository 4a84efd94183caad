import { Diagnostics } from "../core/diagnostics.js";
import type { ModelSpec } from "../dsl/model.js";
import { type Layout, resolveLayout } from "../dsl/resolve.js";
import { checkStructure } from "../dsl/structure.js";
import type { BlockModel } from "./ir/block.js";
import type { Module } from "./ir/graph.js";
import type { Parameter, WeightDtype } from "./ir/parameter.js";
import { printBlocks, printLayout, printModule } from "./ir/print.js";
import { verifyBlocks, verifyModule } from "./ir/verify.js";
import { attachBodies } from "./passes/attach-bodies.js";
import { buildBlocks } from "./passes/build-blocks.js";
import { checkLayout } from "./passes/check-layout.js";
import { checkTarget } from "./passes/check-target.js";
import { fuseResidualNorms } from "./passes/fuse-residual-norms.js";
import { lowerBlocks } from "./passes/lower-blocks.js";
import { packWeights } from "./passes/pack-weights.js";
import { planState } from "./passes/plan-state.js";
import type { Target } from "./targets/target.js";

/** The stages a model goes through, in order. Any of them can be printed. */
export const passNames = ["resolve-layout", "build-blocks", "plan-state", "lower-blocks", "fuse-residual-norms", "pack-weights", "attach-bodies"] as const;
export type PassName = (typeof passNames)[number];

/** The stages from tensor IR to tensor IR; those that a target has no use for are left out. */
const rewrites: readonly { readonly pass: PassName; readonly wanted: (target: Target) => boolean; readonly run: (module: Module) => Module }[] = [
  { pass: "fuse-residual-norms", wanted: (target) => target.fusedNorms, run: fuseResidualNorms },
  { pass: "pack-weights", wanted: (target) => target.packedWeights, run: packWeights },
  { pass: "attach-bodies", wanted: (target) => target.functionBodies, run: attachBodies },
];

/** The stages that a model goes through on its way to a target. */
export function passesFor(target: Target): readonly PassName[] {
  const left = new Set(rewrites.filter(({ wanted }) => !wanted(target)).map(({ pass }) => pass));
  return passNames.filter((pass) => !left.has(pass));
}

/** Called with the text of a stage's result. */
export type Trace = (pass: PassName, text: () => string) => void;

/**
 * Expands and checks a layout.
 * @throws LayerweaveError with everything that is wrong with it.
 */
export function checkedLayout(spec: ModelSpec): Layout {
  const found = new Diagnostics();
  checkStructure(spec, found);
  found.throwIfErrors();
  const layout = resolveLayout(spec, found);
  found.throwIfErrors();
  checkLayout(layout, found);
  found.throwIfErrors();
  return layout;
}

/** A checked layout in block IR, with its state planned. */
export function toBlocks(layout: Layout, target: Target, trace: Trace = () => {}): BlockModel {
  const blocks = buildBlocks(layout);
  verifyBlocks(blocks);
  trace("build-blocks", () => printBlocks(blocks));

  const planned = planState(blocks, target);
  verifyBlocks(planned);
  trace("plan-state", () => printBlocks(planned));
  return planned;
}

/**
 * The whole lowering: layout → block IR → tensor IR, ready to be written. `storage` says how each weight is stored.
 * @throws LayerweaveError with everything in the layout that the target's kernels do not take.
 */
export function lower(layout: Layout, target: Target, storage: (parameter: Parameter) => WeightDtype, trace: Trace = () => {}): { blocks: BlockModel; module: Module } {
  trace("resolve-layout", () => printLayout(layout));
  if (target.limits) {
    const found = new Diagnostics();
    checkTarget(layout, target.limits, found);
    found.throwIfErrors();
  }
  const blocks = toBlocks(layout, target, trace);

  const lowered = lowerBlocks(blocks, target, storage);
  verifyModule(lowered);
  trace("lower-blocks", () => printModule(lowered));

  const module = rewrites
    .filter(({ wanted }) => wanted(target))
    .reduce((before, { pass, run }) => {
      const after = run(before);
      verifyModule(after);
      trace(pass, () => printModule(after));
      return after;
    }, lowered);
  return { blocks, module };
}
