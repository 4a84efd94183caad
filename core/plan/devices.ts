import * as z from "zod";
import { fail } from "../diagnostics.js";
import { storageDtypes } from "../dtype.js";
import { planDiagnostics } from "./diagnostics.js";

/** A number and where it is from. */
const figure = z.strictObject({ value: z.number().positive(), source: z.string().min(1) });

const deviceSchema = z.strictObject({
  name: z.string().min(1),
  /**
   * `bodies`: stock ONNX Runtime on the CPU, our ops as function bodies. `cpu-kernels`: the native runtime on the CPU, our ops as
   * kernels, the KV cache updated in place. `kernels`: our ops as kernels on a GPU, all state updated in place.
   */
  execution: z.enum(["bodies", "cpu-kernels", "kernels"]),
  /** Type of activations, of the KV cache and of conv states. */
  computeDtype: z.enum(storageDtypes),
  /** Bytes of the device; null: it differs, and a budget must be given. */
  memory: figure.nullable(),
  /** Bytes per second, read and written. */
  bandwidth: figure,
  /** Operations per second of matrix products, by element type. */
  matrixRates: z.partialRecord(z.enum(["float32", "float16", "bfloat16"]), figure),
  /** Operations per second in float32 outside of matrix units: scans. */
  vectorRate: figure,
  /** Bytes the runtime takes before any model. */
  runtime: figure,
  /** Bytes each tensor is rounded up to, and how the pool behind them grows. */
  allocator: z.strictObject({ granularity: figure, growth: z.enum(["exact", "half-again", "power-of-two"]) }),
});
export type Device = z.infer<typeof deviceSchema>;

const gpuAllocator: Device["allocator"] = { granularity: { value: 256, source: "BFCArena::kMinAllocationSize of ONNX Runtime 1.29" }, growth: "half-again" };

/** What a process takes on a card before the model. */
const cudaFootprint = { value: 670e6, source: "measured on an H100 80GB, driver 580.159: context of CUDA 13.0, cuBLAS, and the kernels of ONNX Runtime's provider and our own, 641 to 680 MB" };

/** Of that, what is taken before anybody can ask for the card's free bytes: asking makes a context. */
export const cudaContextBytes = 552e6; // measured on the same card: used bytes right after a context and a stream were made

const builtIn: readonly Device[] = [
  {
    name: "h100-80gb",
    execution: "kernels",
    computeDtype: "bfloat16",
    memory: { value: 80e9, source: "the card's name; CUDA reports 85.0·10⁹ bytes" },
    bandwidth: { value: 2.99e12, source: "measured device copy, read and written (datasheet: 3.35·10¹²)" },
    matrixRates: { bfloat16: { value: 782e12, source: "measured 8192³ product (datasheet: 989·10¹²)" }, float16: { value: 782e12, source: "as bfloat16" }, float32: { value: 67e12, source: "datasheet, H100 SXM5" } },
    vectorRate: { value: 67e12, source: "datasheet, H100 SXM5" },
    runtime: cudaFootprint,
    allocator: gpuAllocator,
  },
  {
    name: "h200-141gb",
    execution: "kernels",
    computeDtype: "bfloat16",
    memory: { value: 141e9, source: "the card's name" },
    bandwidth: { value: 4.8e12, source: "datasheet, H200 SXM" },
    matrixRates: { bfloat16: { value: 989e12, source: "datasheet, H200 SXM, dense" }, float16: { value: 989e12, source: "datasheet, H200 SXM, dense" }, float32: { value: 67e12, source: "datasheet, H200 SXM" } },
    vectorRate: { value: 67e12, source: "datasheet, H200 SXM" },
    runtime: cudaFootprint,
    allocator: gpuAllocator,
  },
  {
    name: "a100-80gb",
    execution: "kernels",
    computeDtype: "bfloat16",
    memory: { value: 80e9, source: "the card's name" },
    bandwidth: { value: 2.039e12, source: "datasheet, A100 80GB SXM" },
    matrixRates: { bfloat16: { value: 312e12, source: "datasheet, A100 SXM, dense" }, float16: { value: 312e12, source: "datasheet, A100 SXM, dense" }, float32: { value: 19.5e12, source: "datasheet, A100 SXM" } },
    vectorRate: { value: 19.5e12, source: "datasheet, A100 SXM" },
    runtime: cudaFootprint,
    allocator: gpuAllocator,
  },
  {
    name: "cpu",
    execution: "bodies",
    computeDtype: "float32",
    memory: null,
    bandwidth: { value: 18.6e9, source: "measured copy, read and written, by one thread of an AMD EPYC virtual machine" },
    matrixRates: { float32: { value: 55e9, source: "measured prefill of a dense layout by one thread of the same machine" } },
    vectorRate: { value: 0.6e9, source: "measured scan as a function body by one thread of the same machine" },
    runtime: { value: 95e6, source: "measured resident set of a Node 20 process with the portable runtime and its worker thread, weights taken off" },
    allocator: { granularity: { value: 256, source: "BFCArena::kMinAllocationSize of ONNX Runtime 1.29" }, growth: "power-of-two" },
  },
  {
    name: "cpu-native",
    execution: "cpu-kernels",
    computeDtype: "float32",
    memory: null,
    bandwidth: { value: 32e9, source: "measured copy, read and written, by one thread of an AMD EPYC virtual machine (Zen 5)" },
    matrixRates: { float32: { value: 216e9, source: "measured multiply-adds by one thread of the same machine" } },
    vectorRate: { value: 47e9, source: "the scan kernel's instructions at the rate of the same machine (docs/performance.md)" },
    runtime: { value: 107e6, source: "measured resident set of a Node 20 process with the native runtime, its weights, allocator and state taken off" },
    allocator: { granularity: { value: 256, source: "BFCArena::kMinAllocationSize of ONNX Runtime 1.29" }, growth: "exact" },
  },
];

export const deviceNames: readonly string[] = builtIn.map(({ name }) => name);

/** @throws LayerweaveError `plan/unknown-device` */
export function deviceNamed(name: string): Device {
  return builtIn.find((device) => device.name === name) ?? fail(planDiagnostics["unknown-device"], { device: name, known: deviceNames });
}

/** What a profile's card is called by its driver. */
const cardNames: readonly (readonly [RegExp, string])[] = [
  [/\bH100 80GB/, "h100-80gb"],
  [/\bH200\b/, "h200-141gb"],
  [/\bA100\b.*80GB/, "a100-80gb"],
];

/** The profile of a card that is there: its own memory, and the rates of its kind; those of an A100 for one that has no profile. */
export function deviceOfCard({ name, bytes }: { readonly name: string; readonly bytes: number }): Device {
  const known = cardNames.find(([pattern]) => pattern.test(name))?.[1];
  return { ...deviceNamed(known ?? "a100-80gb"), name: known ?? name, memory: { value: bytes, source: `what the driver says of the ${name}` } };
}

/** A profile with the rates that its device was measured to have, in the type it computes in. */
export function withRates(device: Device, { copyBytesPerSecond, gemmOperationsPerSecond }: { readonly copyBytesPerSecond: number; readonly gemmOperationsPerSecond: number }): Device {
  const source = "measured";
  const rate = { value: gemmOperationsPerSecond, source };
  return { ...device, bandwidth: { value: copyBytesPerSecond, source }, matrixRates: { [device.computeDtype]: rate }, vectorRate: rate };
}

/**
 * A device profile from the text of a JSON file.
 * @throws LayerweaveError `plan/bad-device-profile` naming everything that is wrong with it, `plan/no-rate`
 */
export function parseDevice(text: string, file: string): Device {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    fail(planDiagnostics["bad-device-profile"], { file, problems: [`it is not JSON (${(error as Error).message})`] });
  }
  const parsed = deviceSchema.safeParse(json);
  if (!parsed.success) fail(planDiagnostics["bad-device-profile"], { file, problems: parsed.error.issues.map((issue) => `${issue.path.join(".") || "(root)"}: ${issue.message}`) });
  const { name, computeDtype, matrixRates } = parsed.data;
  if (!matrixRates[computeDtype]) fail(planDiagnostics["no-rate"], { device: name, dtype: computeDtype, known: Object.keys(matrixRates) });
  return parsed.data;
}
