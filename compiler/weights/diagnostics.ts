import { catalogue, define } from "../../core/diagnostics.js";

const againHelp = "Download the file again; nothing in it can be trusted.";

export const weightsDiagnostics = catalogue("weights", {
  "not-found": define<{ path: string }>({
    severity: "error",
    message: ({ path }) => `${path} does not exist.`,
    help: () => "Give a folder with safetensors files, or a .safetensors file. A link into a download cache breaks when the cache is cleaned: download again.",
    explain: "The path given for weights, or the target of a link in that folder, is not there.",
  }),
  unreadable: define<{ path: string; problem: string }>({
    severity: "error",
    message: ({ path, problem }) => `${path} can't be read (${problem}).`,
    help: () => "Check the permissions of the file and of the folders above it.",
    explain: "The operating system refused to open or read a weight file. Its own error is shown.",
  }),
  "no-safetensors": define<{ folder: string; found: readonly string[] }>({
    severity: "error",
    message: ({ folder, found }) =>
      `${folder} holds neither model.safetensors nor model.safetensors.index.json${found.length ? ` (but ${found.join(", ")})` : ""}.`,
    help: ({ found }) => {
      if (found.some((file) => /-\d+-of-\d+\.safetensors$/.test(file))) return "Download model.safetensors.index.json too: it says which shard holds which tensor.";
      if (found.some((file) => file.endsWith(".safetensors"))) return "Give the path of the .safetensors file itself.";
      if (found.length) return "Save the checkpoint as safetensors first (`save_pretrained(..., safe_serialization=True)`); pickled checkpoints are not read.";
      return "Give the folder that the checkpoint was downloaded to.";
    },
    explain: "A checkpoint folder is read as Transformers writes it: one model.safetensors, or shards with model.safetensors.index.json. Pickled files (pytorch_model.bin) can run code when they are loaded and are never opened.",
  }),
  truncated: define<{ file: string; expectedBytes: number; foundBytes: number }>({
    severity: "error",
    message: ({ file, expectedBytes, foundBytes }) => `${file} is cut off: it should have ${expectedBytes} bytes and has ${foundBytes}.`,
    help: () => "Download the file again; the download did not finish.",
    explain: "The header of a safetensors file says where each tensor ends. The file is shorter than the end of its last tensor, so some weights are missing.",
  }),
  "header-length": define<{ file: string; headerBytes: number; fileBytes: number; problem: string }>({
    severity: "error",
    message: ({ file, headerBytes, problem }) => `${file} is no safetensors file: it announces a header of ${headerBytes} bytes, ${problem}.`,
    help: () => "Download the file itself. A small text file under this name is a Git LFS pointer: `git lfs pull` fetches the real one.",
    explain: "The first 8 bytes of a safetensors file are the length of its JSON header. The length read is larger than the file, or larger than the 100 MB that the format allows, so this is another kind of file or a damaged one.",
  }),
  "header-damaged": define<{ file: string; problem: string }>({
    severity: "error",
    message: ({ file, problem }) => `The header of ${file} can't be used: ${problem}.`,
    help: () => againHelp,
    explain: "The header of a safetensors file is a JSON object that gives each tensor's dtype, shape and data_offsets. It is checked entry by entry before any weight is used.",
  }),
  "unknown-dtype": define<{ file: string; tensor: string; dtype: string; known: readonly string[] }>({
    severity: "error",
    message: ({ file, tensor, dtype }) => `${tensor} in ${file} has the unknown dtype "${dtype}".`,
    help: ({ known }) => `Save the checkpoint with one of ${known.join(", ")}.`,
    explain: "Each tensor of a safetensors file names its element type. Types that are packed below a byte, and names that the format does not have, are not read.",
  }),
  "offsets-out-of-range": define<{ file: string; tensor: string; begin: number; end: number }>({
    severity: "error",
    message: ({ file, tensor, begin, end }) => `${tensor} in ${file} ends before it begins: data_offsets [${begin}, ${end}].`,
    help: () => againHelp,
    explain: "data_offsets are a tensor's first byte and the byte after its last, counted from the end of the header. The second can't be below the first.",
  }),
  "wrong-size": define<{ file: string; tensor: string; dtype: string; shape: readonly number[]; expectedBytes: number; foundBytes: number }>({
    severity: "error",
    message: ({ file, tensor, dtype, shape, expectedBytes, foundBytes }) =>
      `${tensor} in ${file} is ${dtype} [${shape.join(", ")}], which takes ${expectedBytes} bytes, but its data_offsets span ${foundBytes}.`,
    help: () => againHelp,
    explain: "The number of bytes between a tensor's data_offsets must be the product of its shape times the size of its dtype.",
  }),
  overlap: define<{ file: string; tensor: string; other: string }>({
    severity: "error",
    message: ({ file, tensor, other }) => `${tensor} and ${other} in ${file} share bytes.`,
    help: () => againHelp,
    explain: "In a safetensors file each byte belongs to exactly one tensor. Tensors that share memory are stored once, under one name.",
  }),
  "unclaimed-bytes": define<{ file: string; begin: number; end: number }>({
    severity: "error",
    message: ({ file, begin, end }) => `Bytes ${begin} to ${end} of the data in ${file} belong to no tensor.`,
    help: () => againHelp,
    explain: "In a safetensors file the tensors follow each other without holes, and the file ends with the last one. The format forbids anything else, so that nothing can hide in a file.",
  }),
  "duplicate-tensor": define<{ tensor: string; files: readonly string[] }>({
    severity: "error",
    message: ({ tensor, files }) => `${tensor} is in more than one shard: ${files.join(", ")}.`,
    help: () => "Download the checkpoint into an empty folder; shards of two versions are mixed.",
    explain: "Each tensor of a sharded checkpoint is in exactly one shard. When two hold it, there is no saying which is meant.",
  }),
  "index-damaged": define<{ file: string; problem: string }>({
    severity: "error",
    message: ({ file, problem }) => `${file} can't be used: ${problem}.`,
    help: () => "Download the index again.",
    explain: "model.safetensors.index.json is a JSON object whose weight_map gives, for each tensor, the name of the shard that holds it.",
  }),
  "shard-missing": define<{ shard: string; index: string; tensors: number }>({
    severity: "error",
    message: ({ shard, index, tensors }) => `${shard} is missing; ${index} places ${tensors} ${tensors === 1 ? "tensor" : "tensors"} in it.`,
    help: ({ shard }) => `Download ${shard} into the same folder.`,
    explain: "The index of a sharded checkpoint names a shard that is not in the folder, or a link whose target is gone.",
  }),
  "unsafe-shard-name": define<{ shard: string; index: string }>({
    severity: "error",
    message: ({ shard, index }) => `${index} names the shard ${JSON.stringify(shard)}, which is no plain path inside the folder.`,
    help: () => "Get the checkpoint from a source you trust; shard names are relative paths with forward slashes, without `.` or `..`.",
    explain: "A shard name comes from a downloaded file. Names that are absolute, leave the folder, or contain a backslash could make the compiler read or publish any file of this machine, so they are refused.",
  }),
  "tensor-not-in-shard": define<{ tensor: string; shard: string; index: string }>({
    severity: "error",
    message: ({ tensor, shard, index }) => `${index} places ${tensor} in ${shard}, which does not hold it.`,
    help: () => "Download the index and the shards again, from the same revision.",
    explain: "The index and the header of the shard disagree. They are from different revisions, or one of them was edited.",
  }),
  "tensor-not-in-index": define<{ tensor: string; shard: string; index: string }>({
    severity: "warning",
    message: ({ tensor, shard, index }) => `${shard} holds ${tensor}, which ${index} does not name.`,
    help: () => "Download the index and the shards from the same revision, if the tensor matters.",
    explain: "A shard holds a tensor that the index does not list. It is used like any other, because Transformers loads shards as a whole.",
  }),
  "tensor-missing": define<{ parameter: string; looked: readonly string[] }>({
    severity: "error",
    message: ({ parameter, looked }) => `The checkpoint holds no tensor for ${parameter}${looked.length ? ` (looked for ${looked.join(", ")})` : ""}.`,
    help: () => "Give the checkpoint that belongs to this layout, whole; or change the layout to what the checkpoint holds.",
    explain: "Every parameter of the layout is found in the checkpoint under one of the names that the model family uses. None of them is there.",
  }),
  "tensor-unused": define<{ tensor: string }>({
    severity: "error",
    message: ({ tensor }) => `The checkpoint holds ${tensor}, which the layout has no place for.`,
    help: () => "Change the layout so that it uses the tensor; a model that leaves a weight out computes something else.",
    explain: "Every tensor of a checkpoint is mapped to a parameter or ignored for a stated reason. One that is neither means that the layout and the checkpoint are of different models.",
  }),
  "tensor-shape": define<{ tensor: string; parameter: string; expected: readonly number[]; found: readonly number[] }>({
    severity: "error",
    message: ({ tensor, parameter, expected, found }) => `${tensor} has shape [${found.join(", ")}]; ${parameter} needs [${expected.join(", ")}].`,
    help: () => "Give the checkpoint that belongs to this layout, or change the layout's sizes to the checkpoint's.",
    explain: "The shape of each tensor follows from the sizes in the layout. This one does not agree, so the layout and the checkpoint are of different models.",
  }),
  "tensor-dtype": define<{ tensor: string; found: string; known: readonly string[] }>({
    severity: "error",
    message: ({ tensor, found }) => `${tensor} is stored as ${found}, which is no type that weights are read from.`,
    help: ({ known }) => `Save the checkpoint as one of ${known.join(", ")}.`,
    explain: "Weights are read from float32, bfloat16 and float16. Quantised or double-precision checkpoints are converted first, by whoever knows how they were made.",
  }),
  "disk-full": define<{ path: string; problem: string }>({
    severity: "error",
    message: ({ path, problem }) => `There is no room for ${path} (${problem}).`,
    help: () => "Free space, or give an output folder on another disk. On the checkpoint's own disk, unchanged weights are linked and take no space.",
    explain: "The disk, or the quota on it, is full. What was written so far is removed; an earlier output in the same place is left as it was.",
  }),
  "not-writable": define<{ path: string; problem: string }>({
    severity: "error",
    message: ({ path, problem }) => `${path} can't be written (${problem}).`,
    help: () => "Give an output folder that you may write to.",
    explain: "The operating system refused to create or write a file. Its own error is shown. What was written so far is removed.",
  }),
  "not-finite": define<{ weight: string; row: number }>({
    severity: "error",
    message: ({ weight, row }) => `${weight} can't be quantised: row ${row} holds NaN or an infinity.`,
    help: () => "Compile without --quantize to look into the weights, or repair the checkpoint: such a weight makes every result NaN anyway.",
    explain: "An int8 row is its largest magnitude divided into 127 steps. A row with NaN or an infinity has no such magnitude. A checkpoint that holds one was damaged, or its training diverged.",
  }),
});
