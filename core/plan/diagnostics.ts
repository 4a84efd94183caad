import { catalogue, define } from "../diagnostics.js";

export const planDiagnostics = catalogue("plan", {
  "bad-bytes": define<{ option: string; found: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ option, found }) => `${option}: ${JSON.stringify(found)} is no amount of memory.`,
    help: () => "Write a number and a unit: 80GB (80·10⁹ bytes), 80GiB (80·2³⁰), 512MB, 512MiB, 16KiB, or plain bytes such as 80000000000B.",
    explain: "Amounts of memory carry their unit, since GB (10⁹ bytes, what card makers print) and GiB (2³⁰ bytes, what allocators count) differ by 7 %. A number alone, another unit, zero and negative amounts are refused.",
  }),
  "bad-count": define<{ option: string; found: string; most: number }>({
    severity: "error",
    exitCode: 2,
    message: ({ option, found, most }) => `${option}: ${JSON.stringify(found)} is no number of tokens or rows from 1 to ${most}.`,
    help: () => "Write a whole number, or one with K or M: 8K is 8192, 256K is 262144, 1M is 1048576.",
    explain: "Contexts, chunks and batches are whole numbers of at least 1 and below 2³¹, the largest extent a tensor may have. K and M count in powers of two, as context lengths are quoted: 256K is 262144.",
  }),
  "unknown-device": define<{ device: string; known: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ device, known }) => `No device is called ${JSON.stringify(device)}; known are ${known.join(", ")}.`,
    help: () => "Name one of those, or give a JSON file with a profile of your own (its fields: docs/planning.md).",
    explain: "The planner needs a device's memory, bandwidth and arithmetic rates. It has profiles of a few; any other is described in a JSON file.",
  }),
  "bad-device-profile": define<{ file: string; problems: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ file, problems }) => `${file} is no device profile: ${problems.join("; ")}.`,
    help: () => "Give every field, each figure as { \"value\": …, \"source\": \"where it is from\" }; docs/planning.md shows a whole profile.",
    explain: "A device profile of one's own is checked field by field before it is used. Figures carry their source, so that a printed plan can say what it rests on.",
  }),
  "no-budget": define<{ device: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ device }) => `The profile ${device} doesn't say how much memory there is.`,
    help: () => "Give a budget: --budget 16GiB.",
    explain: "Memory of a CPU differs from machine to machine, so its profile has none; the budget says how much may be used.",
  }),
  "needs-kernels": define<{ model: string; device: string }>({
    severity: "error",
    message: ({ model, device }) => `${model} was compiled for kernels that ${device} doesn't have.`,
    help: () => "Plan it for a device whose profile says \"execution\": \"kernels\", such as h100-80gb, or compile it for the portable target.",
    explain: "A folder that is compiled for CUDA has packed weights and ops without bodies in standard ops. Stock ONNX Runtime can't run it, so there is nothing to plan there.",
  }),
  "no-rate": define<{ device: string; dtype: string; known: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ device, dtype, known }) => `The profile ${device} computes in ${dtype} but has no rate for it, only for ${known.join(", ")}.`,
    help: ({ dtype }) => `Add "${dtype}" to the profile's matrixRates.`,
    explain: "Rooflines need the rate of matrix products in the type that activations have.",
  }),
  "over-budget": define<{ model: string; total: string; budget: string; over: string; items: string; gives: string }>({
    severity: "error",
    exitCode: 4,
    message: ({ model, total, budget, over, items }) => `${model} needs ${total}, ${over} more than the budget of ${budget}: ${items}.`,
    help: ({ gives }) => gives,
    explain: "The plan adds up everything a model will hold at its peak: weights, state for the whole context, activations and workspace of the larger of a prefill chunk and a decode step, and what the runtime itself takes. When that exceeds the budget, nothing is allocated.",
  }),
});
