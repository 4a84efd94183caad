/** The memory plan: `plan(model, options)` with a model from a manifest (`planModelOf`) or a layout (`planModel` of `layerweave/compiler`). */
export { type Device, deviceNamed, deviceNames, parseDevice, withRates } from "./devices.js";
export { type PlanModel, planModelOf } from "./model.js";
export { overBudget, type Plan, type PlanBytes, type PlanOptions, type PlanHolders, plan, type Relief } from "./plan.js";
export { formatBinaryBytes, formatBytes, parseBytes, parseCount } from "./sizes.js";
export type { Quantization } from "./weights.js";
