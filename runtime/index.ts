/**
 * Runs compiled models: `load` a folder, `generate` text, or feed tokens and carry state yourself.
 *
 * ```ts
 * await using model = await load("tiny-jamba");
 * for await (const { text } of model.generate("In the beginning ")) process.stdout.write(text);
 * ```
 */
export { load, type LoadOptions, type WeightPlace } from "./load.js";
export type { MemoryParts, Model, ModelMemory, PrefillOptions } from "./model.js";
export type { LogitsWanted, Snapshot, State } from "./state.js";
export type { BackendChoice, Card, CardMemory, DeviceRates, SlotContent, StepTimes } from "./backends/backend.js";
export { cudaCards } from "./backends/cuda.js";
export type { BackendName } from "./backends/choose.js";
export { PrefixCache, type CachedPrefillOptions, type PrefixCacheStats, type PrefixReport } from "./prefix-cache.js";
export type { Completion, GeneratedToken, GenerateOptions, Generation, GenerationStats, Prompt, StopReason } from "./generate.js";
export type { SamplingOptions } from "./sampling.js";
export type { Message, Tokenizer } from "./tokenizer.js";
export { verify, type Verification } from "./verify.js";
export { type Diagnostic, LayerweaveError } from "../core/diagnostics.js";
