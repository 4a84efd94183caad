import * as z from "zod";
import { catalogue, define, fail } from "./diagnostics.js";
import { dtypes } from "./dtype.js";
import { profileSchema } from "./plan/profile.js";

/** Raised whenever a reader of an older manifest could misread a newer one. */
export const manifestVersion = 1;
export const manifestFile = "manifest.json";

export const manifestDiagnostics = catalogue("manifest", {
  missing: define<{ folder: string }>({
    severity: "error",
    message: ({ folder }) => `${folder} holds no ${manifestFile}.`,
    help: () => `Give a folder that \`layerweave compile\` wrote.`,
    explain: `A compiled folder is recognised by its ${manifestFile}, which says what the graph takes and returns, what state it carries and where its weights are. Without it the folder can't be used: the runtime never guesses from tensor names.`,
  }),
  damaged: define<{ folder: string; problem: string }>({
    severity: "error",
    message: ({ folder, problem }) => `${manifestFile} in ${folder} can't be used: ${problem}.`,
    help: () => "Compile the model again; the manifest is never edited by hand.",
    explain: "The manifest is validated field by field before anything is loaded, so that a truncated download or a hand edit is reported here and not as a wrong answer later.",
  }),
  "other-version": define<{ folder: string; found: number; supported: number }>({
    severity: "error",
    message: ({ folder, found, supported }) => `${folder} was compiled for manifest version ${found}; this release reads version ${supported}.`,
    help: ({ found, supported }) => (found > supported ? "Update layerweave, or compile the model again with this release." : "Compile the model again with this release."),
    explain: "The manifest's version is raised whenever an older reader could misread a newer folder. A folder of another version is refused as a whole.",
  }),
  "missing-file": define<{ folder: string; file: string }>({
    severity: "error",
    message: ({ folder, file }) => `${folder} lacks ${file}, which its manifest names.`,
    help: () => "Copy the compiled folder as a whole, or compile again.",
    explain: "Every file the manifest names must be in the folder: the graph, the weight files, and the tokenizer where there is one.",
  }),
  "changed-file": define<{ folder: string; file: string; expected: string; found: string }>({
    severity: "error",
    message: ({ folder, file, expected, found }) => `${file} in ${folder} is not the file that was compiled: ${expected} expected, ${found} found.`,
    help: () => "Compile again; a weight file that is shared with a checkpoint (hard link) changes when the checkpoint is overwritten in place.",
    explain: "The manifest records each file's size, the graph's SHA-256 and the SHA-256 of each weight file's header. A difference means that offsets into the file can no longer be trusted.",
  }),
});

const dim = z.union([z.int().nonnegative(), z.enum(["B", "T", "S", "L"])]);
const dtype = z.enum(dtypes);
const name = z.string().min(1);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
/** A path inside the compiled folder: relative, no `..`. */
const file = z.string().regex(/^(?!\/)(?!.*(?:^|\/)\.\.(?:\/|$))[^\\\0]+$/, "a relative path inside the folder");

const tensor = z.strictObject({ name, dtype, shape: z.array(dim) });

/** One piece of state that a layer carries from run to run. */
export const stateSlotSchema = z.strictObject({
  layer: z.int().nonnegative(),
  role: z.enum(["key", "value", "conv_state", "ssm_state"]),
  /** Graph input that takes the state. */
  past: name,
  /** Graph output that returns it, with the same shape. */
  present: name,
  dtype,
  /** `S` is the capacity: a KV cache is a buffer of S positions of which the first `past_lengths[b]` count. */
  shape: z.array(dim),
  growth: z.enum(["per-token", "constant"]),
  /** `trim`: lowering the length rewinds it. `snapshot`: only a copy taken earlier does. */
  rewind: z.enum(["trim", "snapshot"]),
  /** `swap`: the graph returns a new tensor. `in-place`: past and present may be one buffer. */
  update: z.enum(["swap", "in-place"]),
  /** Attention looks back this many positions (the current one included); absent: all of them. The buffer still holds all. */
  window: z.int().positive().optional(),
});
export type StateSlot = z.infer<typeof stateSlotSchema>;

export const weightKinds = ["embedding", "attention", "mamba", "mlp", "experts", "router", "norm", "lm-head"] as const;
export type WeightKind = (typeof weightKinds)[number];

const parameterOrigin = z.discriminatedUnion("from", [
  /** Bytes of the checkpoint as they are, or converted or quantised from another element type (`cast`). */
  z.strictObject({ from: z.literal("checkpoint"), tensor: name, slice: z.strictObject({ start: z.int().nonnegative(), length: z.int().positive() }).optional(), cast: dtype.optional() }),
  z.strictObject({ from: z.literal("random"), seed: z.int().nonnegative() }),
  /** Compiled without weights: the place is planned, the file is not there. */
  z.strictObject({ from: z.literal("absent") }),
]);

export type ParameterOrigin = z.infer<typeof parameterOrigin>;

const weightOrigin = z.union([
  parameterOrigin,
  /** Rows of several parameters, in order; those of a stack of packed matrices one matrix after the other. */
  z.strictObject({ from: z.literal("parameters"), parameters: z.array(z.strictObject({ name, rows: z.int().positive(), origin: parameterOrigin })).min(2) }),
]);

/**
 * The order of a packed matrix's elements (kernels/include/packed_weights.h). `panels`: of the rows as they come. `gated-panels`:
 * of a gate and an up matrix of as many rows each, 16 rows of either to a panel.
 */
const packing = z.strictObject({
  layout: z.enum(["panels", "gated-panels"]),
  /** Of one matrix, or of one of a pair, without padding; a weight of three dimensions is a stack. */
  rows: z.int().positive(),
  columns: z.int().positive(),
});
export type WeightPacking = z.infer<typeof packing>;

const weight = z.strictObject({
  name,
  kind: z.enum(weightKinds),
  layer: z.int().nonnegative().optional(),
  dtype,
  /** Of a packed weight with the zeros that pad it. */
  shape: z.array(z.int().nonnegative()),
  /** Absent: elements lie row by row. Scales lie in the order of the packed rows of the weight they belong to. */
  packing: packing.optional(),
  file,
  offset: z.int().nonnegative(),
  bytes: z.int().nonnegative(),
  /** Follows the storage type of the model, and may be quantised. */
  matrix: z.boolean(),
  /** An int8 weight times these, one per row, is the float32 weight that it stands for. */
  scalesOf: name.optional(),
  origin: weightOrigin,
});
export type ManifestWeight = z.infer<typeof weight>;

const location = z.strictObject({ file: z.string(), line: z.int(), column: z.int() });

export const manifestSchema = z.strictObject({
  format: z.literal("layerweave"),
  version: z.literal(manifestVersion),
  producer: z.strictObject({ name, version: name }),
  target: name,
  model: z.strictObject({
    name,
    /** The resolved layout (`layout.json`) and the SHA-256 of its canonical JSON. */
    layout: z.strictObject({ file, sha256 }),
    vocabSize: z.int().positive(),
    dModel: z.int().positive(),
    nLayers: z.int().positive(),
    /** Longest context the model was made for, in tokens; null: no such limit is known. */
    contextLength: z.int().positive().nullable(),
    parameters: z.strictObject({ total: z.int().nonnegative(), active: z.int().nonnegative() }),
  }),
  graph: z.strictObject({
    file,
    bytes: z.int().positive(),
    sha256,
    irVersion: z.int().positive(),
    opset: z.int().positive(),
    computeDtype: dtype,
    /** Custom-domain ops in the graph that carry a function body, as `domain::Name`. */
    functions: z.array(name),
    /** Custom-domain ops in the graph that carry none: what runs it must have kernels for them. */
    kernels: z.array(name),
  }),
  inputs: z.strictObject({
    /** [B, T] int64; rows shorter than T are padded on the right. */
    inputIds: tensor,
    /** [B] int64: tokens already in the state of each row, so also the position of its first new token. */
    pastLengths: tensor,
    /** [B] int64: how many of the T tokens of each row count. */
    lengths: tensor,
    /** [B, L] int64: positions within this run (0 … T-1) whose logits are wanted. */
    logitIndices: tensor,
  }),
  outputs: z.strictObject({ /** [B, L, V] float32 */ logits: tensor }),
  state: z.array(stateSlotSchema),
  /** What a run costs in memory and operations, for the planner. */
  profile: profileSchema,
  files: z.array(z.strictObject({ file, bytes: z.int().nonnegative(), headerSha256: sha256, from: z.enum(["hard-link", "reflink", "copy", "written"]) })),
  weights: z.array(weight),
  /** ONNX node name → the place in the layout it was lowered from. */
  origins: z.record(z.string(), z.strictObject({ path: z.string(), at: location.optional() })),
  tokenizer: z
    .strictObject({ file, config: file.optional(), chatTemplate: file.optional() })
    .nullable(),
  generation: z.strictObject({
    bosTokenId: z.int().nonnegative().nullable(),
    eosTokenIds: z.array(z.int().nonnegative()),
    padTokenId: z.int().nonnegative().nullable(),
  }),
});

/** The contract between compiler and runtime: everything the runtime knows of a compiled folder. */
export type Manifest = z.infer<typeof manifestSchema>;

/**
 * Validates the text of a `manifest.json`.
 * @throws LayerweaveError `manifest/damaged` or `manifest/other-version`.
 */
export function parseManifest(text: string, folder: string): Manifest {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    fail(manifestDiagnostics.damaged, { folder, problem: `it is not JSON (${(error as Error).message})` });
  }
  const version = z.looseObject({ format: z.literal("layerweave"), version: z.int() }).safeParse(json);
  if (!version.success) fail(manifestDiagnostics.damaged, { folder, problem: "it is no layerweave manifest (format, version)" });
  if (version.data.version !== manifestVersion)
    fail(manifestDiagnostics["other-version"], { folder, found: version.data.version, supported: manifestVersion });
  const parsed = manifestSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    fail(manifestDiagnostics.damaged, { folder, problem: `${issue?.path.join(".") || "(root)"}: ${issue?.message ?? "invalid"}` });
  }
  return parsed.data;
}
