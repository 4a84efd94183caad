export { LayerweaveError, type Diagnostic, renderDiagnostic } from "../core/diagnostics.js";
export { type Compiled, type CompileOptions, compile, readCompiledLayout, type WeightSource } from "./compile.js";
export { checkedLayout, lower, type PassName, passNames, toBlocks, type Trace } from "./lower.js";
export { importCheckpoint, type ImportedCheckpoint } from "./importers/index.js";
export { planModel } from "./passes/profile-model.js";
export { portable } from "./targets/portable.js";
export type { Target } from "./targets/target.js";
export type { Layout } from "../dsl/resolve.js";
