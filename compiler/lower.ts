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
import { lowerBlocks } from "./passes/lower-blocks.js";
import { planState } from "./passes/plan-state.js";
import type { Target } from "./targets/target.js";

/** The stages a model goes through, in order. Any of them can be printed. */
export const passNames = ["resolve-layout", "build-blocks", "plan-state", "lower-blocks", "attach-bodies"] as const;
export type PassName = (typeof passNames)[number];

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

/** The whole lowering: layout → block IR → tensor IR with the bodies of our ops. `storage` says how each weight is stored. */
export function lower(layout: Layout, target: Target, storage: (parameter: Parameter) => WeightDtype, trace: Trace = () => {}): { blocks: BlockModel; module: Module } {
  trace("resolve-layout", () => printLayout(layout));
  const blocks = toBlocks(layout, target, trace);

  const lowered = lowerBlocks(blocks, target, storage);
  verifyModule(lowered);
  trace("lower-blocks", () => printModule(lowered));

  const complete = attachBodies(lowered);
  verifyModule(complete);
  trace("attach-bodies", () => printModule(complete));
  return { blocks, module: complete };
}
