import { catalogue, define } from "../core/diagnostics.js";

export const compileDiagnostics = catalogue("compile", {
  "output-exists": define<{ folder: string }>({
    severity: "error",
    message: ({ folder }) => `${folder} exists and is no compiled folder.`,
    help: () => "Choose another output folder, or remove this one yourself. A folder that was compiled before is replaced.",
    explain: "Compiling replaces a compiled folder as a whole. Anything else in its place is never touched.",
  }),
  "not-writable": define<{ folder: string; problem: string }>({
    severity: "error",
    message: ({ folder, problem }) => `${folder} can't be written: ${problem}.`,
    help: () => "Choose an output folder that you may write to, on a disk with room for it.",
    explain: "The output is written under a temporary name beside its final one and renamed at the end; that needs write access to the parent folder.",
  }),
  "not-compiled": define<{ folder: string; problem: string }>({
    severity: "error",
    message: ({ folder, problem }) => `the layout of ${folder} can't be used: ${problem}.`,
    help: () => "Compile the model again.",
    explain: "A compiled folder keeps its resolved layout in layout.json, whose SHA-256 is in the manifest.",
  }),
});
