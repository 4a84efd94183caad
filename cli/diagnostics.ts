import { catalogue, define } from "../core/diagnostics.js";

export const layoutDiagnostics = catalogue("layout", {
  "syntax-error": define<{ problem: string; number: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ problem, number }) => `${problem} (TS${number})`,
    help: () => "Correct the line that is shown; until the file can be parsed nothing else in it is checked.",
    explain: "The layout file, or a file it imports, is not valid TypeScript. The message and its number are the TypeScript compiler's.",
  }),
  "type-error": define<{ problem: string; number: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ problem, number }) => `${problem} (TS${number})`,
    // 2584 and 2580: a global of browsers or of Node (console, process, require).
    help: ({ number }) =>
      number === 2584 || number === 2580
        ? "A layout is data and does no I/O; `layerweave inspect` prints what it says."
        : "Change the value to the type that is expected; an editor shows the same message.",
    explain:
      "Layout files are type-checked (strict) before they are run, against the declarations of this release, in or outside a project. What TypeScript can rule out is reported here: misspelt fields, a channel mixer where a mixer belongs, a letter that a pattern's legend lacks. The message and its number are the TypeScript compiler's.",
  }),
  "cannot-load": define<{ file: string; problem: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ file, problem }) => `${file} can't be loaded: ${problem}`,
    help: () => "Check the imports of the file; a layout imports `layerweave` and other files by relative paths.",
    explain: "A layout file and the files it imports are bundled into one module in the system's temporary folder, which is then run. The bundler, or the module loader, refused.",
  }),
  threw: define<{ file: string; problem: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ file, problem }) => `${file} threw while it was run: ${problem}`,
    help: () => "Correct the place that is shown; a layout file only has to build and export its model.",
    explain: "A layout file is a program whose result is its default export. It ended with an exception before there was one.",
  }),
});

export const cliDiagnostics = catalogue("cli", {
  usage: define<{ problem: string; command: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ problem }) => problem,
    help: ({ command }) => `\`${command} --help\` lists the arguments and options.`,
    explain: "The command line was not understood: an unknown command or option, a missing argument, or a value outside its range. Nothing was run.",
  }),
  "source-not-found": define<{ source: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ source }) => `${source} does not exist.`,
    help: () => "Give a layout file (.ts), a Hugging Face checkpoint folder, or a compiled folder.",
    explain: "The source of a command is a path: a layout written in TypeScript, a folder downloaded from Hugging Face (it has a config.json), or a folder that `layerweave compile` wrote (it has a manifest.json). Models are not downloaded.",
  }),
  "source-not-recognised": define<{ source: string; found: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ source, found }) => `${source} is ${found}.`,
    help: () => "Give a layout file (.ts), a folder with a config.json (Hugging Face), or a folder with a manifest.json (compiled).",
    explain: "What a source is is decided by what is there: a file must be TypeScript (.ts), a folder must hold a manifest.json (compiled) or a config.json (Hugging Face checkpoint). Other files, such as an .onnx or a .safetensors file, are parts of such a folder.",
  }),
  "source-unreadable": define<{ source: string; problem: string }>({
    severity: "error",
    message: ({ source, problem }) => `${source} can't be read (${problem}).`,
    help: () => "Check the permissions of the path and of the folders above it.",
    explain: "The operating system refused to open or list a source. Its own error is shown.",
  }),
  "no-such-pass": define<{ pass: string; target: string; passes: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ pass, target }) => `the ${target} target goes without ${pass}.`,
    help: ({ passes }) => `Print another stage: ${passes.join(", ")}.`,
    explain: "Which stages a model goes through depends on what its target can do: function bodies are attached for runtimes without kernels, weights are packed for those with.",
  }),
  "output-is-source": define<{ folder: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ folder }) => `${folder} is both the source and the output.`,
    help: () => "Choose another output folder.",
    explain: "Compiling a compiled folder starts from its layout alone: its weights are not taken over. Writing to the same place would replace them.",
  }),
  "no-prompt": define<Record<string, never>>({
    severity: "error",
    exitCode: 2,
    message: () => "There is no prompt: none was given, and standard input is empty.",
    help: () => "Give --prompt \"…\", --token-ids 1,2,3, or pipe the text in.",
    explain: "`layerweave run` continues a prompt. It is taken from --prompt, from --token-ids, or from standard input when that is piped or when the prompt is `-`.",
  }),
  "bench-beyond-context": define<{ prompt: number; tokens: number; contextLength: number }>({
    severity: "error",
    exitCode: 2,
    message: ({ prompt, tokens, contextLength }) => `A prompt of ${prompt} and ${tokens} tokens after it are more than the model's context of ${contextLength}.`,
    help: ({ contextLength }) => `Choose --prompt (or --depth) and --tokens that add up to at most ${contextLength}.`,
    explain: "`layerweave bench` feeds a prompt and then decodes token by token in the same state; on a card a few tokens first, then as many as asked for twice: chosen there, and with logits. A state holds no more tokens than the model was made for.",
  }),
  "file-exists": define<{ file: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ file }) => `${file} exists.`,
    help: () => "Choose another name, or give --force to replace it.",
    explain: "A layout file may hold work of yours, so it is replaced only on request.",
  }),
  "bad-knob": define<{ found: string; problem: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ found, problem }) => `--knob ${found}: ${problem}.`,
    help: () => "Write a name and its values, such as --knob nExperts=4,8,16, once for each knob.",
    explain: "A sweep plans the layout for every combination of its knobs' values. A knob is a field of the object that the layout's function takes; its values are numbers.",
  }),
  "unused-knob": define<{ file: string; knobs: readonly string[]; read: readonly string[] }>({
    severity: "error",
    exitCode: 2,
    message: ({ file, knobs, read }) => `${file} does not read ${knobs.join(", ")}; ${read.length > 0 ? `its knobs are ${read.join(", ")}` : "it reads no knobs"}.`,
    help: ({ read }) => (read.length > 0 ? "Check the spelling of the knob." : "Export a function of the knobs: `export default ({ nExperts = 8 }: { nExperts?: number }) => model({ … })`."),
    explain: "A knob that the layout's function never looks at changes nothing: all points of the sweep along it would be equal. What it looks at is watched while it runs.",
  }),
  "too-many-points": define<{ points: number; most: number }>({
    severity: "error",
    exitCode: 2,
    message: ({ points, most }) => `The knobs have ${points} combinations; a sweep takes at most ${most}.`,
    help: () => "Give fewer values, or sweep a few knobs at a time.",
    explain: "A sweep plans every combination of all values, so that their numbers multiply. A number of points that nobody can look at is more often a mistake than a wish.",
  }),
  "wrong-extension": define<{ file: string; expected: string }>({
    severity: "error",
    exitCode: 2,
    message: ({ file, expected }) => `The file to write is called ${file}; its name must end in ${expected}.`,
    help: ({ expected }) => `Choose a name that ends in ${expected}.`,
    explain: "Pages and pictures replace the file of their name, so that they can be made again. A name of another kind is refused: it may be that of a source.",
  }),
  "not-writable": define<{ file: string; problem: string }>({
    severity: "error",
    message: ({ file, problem }) => `${file} can't be written (${problem}).`,
    help: () => "Choose a place that you may write to, with room for the file.",
    explain: "The operating system refused to write a file. Its own error is shown. The file appears as a whole or not at all.",
  }),
  "unknown-code": define<{ wanted: string; nearest: string | null }>({
    severity: "error",
    exitCode: 2,
    message: ({ wanted, nearest }) => `There is no diagnostic ${wanted}.${nearest === null ? "" : ` Did you mean ${nearest}?`}`,
    help: () => "`layerweave explain` without a code lists them all.",
    explain: "Each problem that layerweave reports has a code of the form area/name, printed at the start of its message.",
  }),
});
