#!/usr/bin/env node
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { passNames } from "../compiler/lower.js";
import { targetNames } from "../compiler/targets/index.js";
import { producer } from "../compiler/producer.js";
import { diagnostic, type Diagnostic, InternalError, LayerweaveError } from "../core/diagnostics.js";
import { storageDtypes } from "../core/dtype.js";
import { quantizations } from "../core/plan/weights.js";
import type { BenchOptions } from "./commands/bench.js";
import type { CompileCommandOptions } from "./commands/compile.js";
import type { ImportOptions } from "./commands/import.js";
import type { InspectOptions } from "./commands/inspect.js";
import type { PlanCommandOptions } from "./commands/plan.js";
import type { ReportOptions } from "./commands/report.js";
import type { RunOptions } from "./commands/run.js";
import type { SweepOptions } from "./commands/sweep.js";
import type { VerifyOptions } from "./commands/verify.js";
import { cliDiagnostics } from "./diagnostics.js";
import { handleInterrupts, Interrupted } from "./interrupt.js";
import type { BackendName, WeightPlace } from "../runtime/index.js";
import type { SourceOptions } from "./source.js";
import { Terminal } from "./terminal.js";

const failure = 1;
const overBudget = 4;
const numericalMismatch = 5;

const number = (text: string): number => {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It is no number.");
  return value;
};

const natural = (text: string): number => {
  const value = number(text);
  if (!Number.isSafeInteger(value) || value < 0) throw new InvalidArgumentError("It is no whole number from 0 on.");
  return value;
};

const listed = (text: string, before: readonly string[] = []): readonly string[] => [...before, text];

const backends = ["auto", "native", "portable"] as const satisfies readonly BackendName[];
const weightPlaces = ["copied", "mapped"] as const satisfies readonly WeightPlace[];
const backend = (): Option => new Option("--backend <name>", "what runs the graph: native where it can be used, or portable (stock ONNX Runtime)").choices(backends).default("auto");

/** Where a compiled folder runs. */
const device = (command: Command): Command =>
  command
    .addOption(backend())
    .option("--device <name>", "cpu, or cuda:0 and so on for a folder compiled for CUDA (default: what it was compiled for)")
    .option("--no-cuda-graphs", "run every decode step by itself instead of repeating a captured one")
    .addOption(new Option("--weights <place>", "where int8 weights lie on the CPU: copied into memory, or in their mapped files, slower but shared by processes").choices(weightPlaces).default("copied"));

const source = ["<source>", "layout file (.ts), Hugging Face folder or compiled folder"] as const;
const allowUnknownKeys = ["--allow-unknown-keys", "report unknown keys of a config.json as warnings"] as const;

const quantize = () => new Option("--quantize <what>", "store experts and dense MLPs, or every linear layer, as int8").choices(quantizations).default("none");

/** What every command that plans is told of device and types. */
const planning = (command: Command): Command =>
  command
    .option("--chunk <n>", "tokens of one prefill run (default: 8K on a GPU, 512 on the CPU)")
    .addOption(quantize())
    .addOption(new Option("--dtype <type>", "matrices as stored (default: the folder's; for a layout, what the device computes in)").choices(storageDtypes))
    .addOption(new Option("--kv-dtype <type>", "KV cache (default: what the device computes in)").choices(storageDtypes))
    .addOption(new Option("--state-dtype <type>", "SSM states (default: float32)").choices(storageDtypes))
    .option("--budget <bytes>", "such as 80GB (10⁹) or 80GiB (2³⁰) (default: the device's memory)")
    .option("--device <name|file.json>", "profile to plan for", "h100-80gb")
    .option(...allowUnknownKeys);

/** The command line. Each command is loaded when it is run: most of them need little of what others do. */
function commandLine(terminal: Terminal): Command {
  const program = new Command("layerweave")
    .description("Hybrid language models as typed layouts: checked, compiled to ONNX, run.")
    .version(producer.version)
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
  const command = (name: string, description: string): Command => program.command(name).description(description).option("--json", "print one JSON object with a schemaVersion");

  command("check", "say everything that is wrong with a layout")
    .argument(...source)
    .option(...allowUnknownKeys)
    .action(async (path: string, options: SourceOptions) => (await import("./commands/check.js")).check(terminal, path, options));

  command("inspect", "show layers, parameters and state")
    .argument(...source)
    .option("--all", "show every layer by itself")
    .option(...allowUnknownKeys)
    .action(async (path: string, options: InspectOptions) => (await import("./commands/inspect.js")).inspect(terminal, path, options));

  const sources = ["<source...>", "layout files (.ts), Hugging Face folders or compiled folders"] as const;
  const contextAndBatch = (command: Command): Command =>
    command.option("--context <n>", "tokens per sequence, such as 256K (default: the model's context length)").option("--batch <n>", "sequences at once", "1");

  planning(contextAndBatch(command("plan", "say what a model needs in memory and time on a device, and whether it fits").argument(...sources))).action(async (paths: readonly string[], options: PlanCommandOptions) => {
    if (!(await (await import("./commands/plan.js")).planSources(terminal, paths, options))) process.exitCode = overBudget;
  });

  planning(contextAndBatch(command("report", "draw layers, memory and cost into one HTML page").argument(...sources)))
    .requiredOption("-o, --out <file.html>", "page to write; one that is there is replaced")
    .action(async (paths: readonly string[], options: ReportOptions) => (await import("./commands/report.js")).report(terminal, paths, options));

  planning(
    command("sweep", "plan a layout for every combination of its knobs")
      .argument("<layout.ts>", "layout file that exports a function of its knobs, or a model")
      .addOption(new Option("--knob <name=values>", "a knob and its values, such as nExperts=4,8,16; may be repeated").argParser(listed).default([]))
      .option("--context <list>", "tokens per sequence, such as 8K,64K,256K (default: the model's context length)")
      .option("--batch <list>", "sequences at once, such as 1,8", "1")
      .addOption(new Option("--csv", "print CSV instead of a table").conflicts("json"))
      .option("--svg <file.svg>", "picture to write; one that is there is replaced"),
  ).action(async (file: string, options: SweepOptions) => (await import("./commands/sweep.js")).sweep(terminal, file, options));

  command("import", "write the layout of a Hugging Face folder as TypeScript")
    .argument("<hf-folder>", "folder with a config.json")
    .option("-o, --out <file.ts>", "file to write (default: standard output)")
    .option("--force", "replace the file")
    .option(...allowUnknownKeys)
    .action(async (folder: string, options: ImportOptions) => (await import("./commands/import.js")).importLayout(terminal, folder, options));

  command("compile", "compile into a folder with graph, manifest, weights and tokenizer")
    .argument(...source)
    .requiredOption("-o, --out <folder>", "folder to write; a compiled folder there is replaced")
    .addOption(new Option("--weights <hf-folder>", "take the weights from this folder (default: the source, if it is one)").conflicts("random"))
    .option("--random <seed>", "make random weights", natural)
    .addOption(new Option("--target <name>", "what the folder is to run on: anything, or CUDA").choices(targetNames).default("portable"))
    .addOption(new Option("--dtype <type>", "store matrices in this type (default: the checkpoint's, float32 for random ones; bfloat16 for CUDA, which computes in it too)").choices(storageDtypes))
    .addOption(quantize())
    .addOption(new Option("--print-ir-after <pass>", "print the IR after this pass").choices([...passNames, "all"]))
    .option(...allowUnknownKeys)
    .action(async (path: string, options: CompileCommandOptions) => (await import("./commands/compile.js")).compileSource(terminal, path, options));

  device(command("run", "continue a prompt"))
    .argument("<folder>", "compiled folder")
    .option("-p, --prompt <text>", "text to continue; - reads standard input, as does leaving it out when that is piped")
    .addOption(new Option("--token-ids <ids>", "token ids to continue, such as 1,2,3").conflicts("prompt").argParser((text) => text.split(",").map(natural)))
    .addOption(new Option("--chat", "give the prompt to the model's chat template as a message").conflicts("tokenIds"))
    .option("-n, --max-tokens <n>", "most tokens to generate", natural, 128)
    .option("--temperature <t>", "0 always takes the best token", number, 0)
    .option("--top-k <k>", "draw from the k best tokens only", natural)
    .option("--top-p <p>", "draw from the fewest tokens that reach this probability", number)
    .option("--min-p <p>", "draw from tokens at least this probable, relative to the best", number)
    .option("--repetition-penalty <x>", "make tokens that occurred less likely (above 1)", number)
    .option("--seed <n>", "repeat the same draws", natural)
    .option("--stop <text>", "end before this text; may be repeated", listed)
    .option("--chunk <n>", "tokens of the prompt fed at once", natural)
    .option("--context <n>", "tokens to have memory for, such as 8K (default: the model's context length)")
    .option("--budget <bytes>", "memory that may be used, such as 8GiB (default: what is available)")
    .option("--force", "run a model that does not fit in the budget")
    .action(async (folder: string, { json: _, ...options }: RunOptions & { readonly json?: boolean }) => (await import("./commands/run.js")).run(terminal, folder, options));

  device(command("bench", "measure prefill and decode against what this machine allows"))
    .argument("<folder>", "compiled folder")
    .option("--prompt <n>", "tokens of the prompt", "512")
    .option("--tokens <n>", "tokens to decode after it", "128")
    .option("--depth <n>", "tokens in the cache before decoding is measured, fed after the prompt (default: the prompt's)")
    .option("--batch <n>", "sequences at once", "1")
    .option("--repeat <n>", "repetitions, after one to warm up", "3")
    .option("--chunk <n>", "tokens of the prompt fed at once (default: 8K on a card, 512 on the CPU)")
    .option("--threads <n>", "threads that compute one operator together (default: as many as the process may use)")
    .option("--budget <bytes>", "memory that may be used, such as 8GiB (default: what is available)")
    .action(async (folder: string, options: BenchOptions) => (await import("./commands/bench.js")).bench(terminal, folder, options));

  device(command("verify", "compare a compiled folder with reference logits"))
    .argument("<folder>", "compiled folder")
    .requiredOption("--reference <file>", "safetensors file with input_ids and logits")
    .option("--tolerance <x>", "largest relative error that passes", number, 1e-5)
    .action(async (folder: string, options: VerifyOptions) => {
      if (!(await (await import("./commands/verify.js")).verifyFolder(terminal, folder, options))) process.exitCode = numericalMismatch;
    });

  command("explain", "explain a diagnostic, or list them all")
    .argument("[code]", "such as dsl/top-k-above-experts")
    .action(async (code: string | undefined) => (await import("./commands/explain.js")).explain(terminal, code));

  command("doctor", "try out whether everything works on this machine").action(async () => {
    if (!(await (await import("./commands/doctor.js")).doctor(terminal))) process.exitCode = failure;
  });

  return program;
}

/** Shows an error the way its kind asks for. @returns the exit code. */
function report(terminal: Terminal, error: unknown, command: string): number {
  if (error instanceof Interrupted) {
    terminal.note("Interrupted.");
    return error.exitCode;
  }
  const show = (diagnostics: readonly Diagnostic[]): void => {
    terminal.report(diagnostics);
    terminal.result({ diagnostics });
  };
  if (error instanceof LayerweaveError) {
    show(error.diagnostics);
    return error.exitCode;
  }
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return 0;
    // Without a command, commander has printed the help.
    const problem = error.code === "commander.help" ? "A command is missing." : error.message.replace(/^error: /, "");
    const usage = diagnostic(cliDiagnostics.usage, { problem, command });
    show([usage]);
    return usage.exitCode;
  }
  const internal = error instanceof InternalError ? error : new InternalError(error instanceof Error ? `${error.name}: ${error.message}` : String(error));
  terminal.note(internal.message);
  if (process.env["DEBUG"]) terminal.note(error instanceof Error ? String(error.stack) : "");
  else terminal.note("DEBUG=1 shows where it happened.");
  terminal.result({ internalError: internal.message });
  return failure;
}

handleInterrupts();
const terminal = new Terminal(process.argv.includes("--json"));
const program = commandLine(terminal);
try {
  await program.parseAsync();
} catch (error) {
  const chosen = program.commands.find((command) => command.name() === program.args[0]);
  process.exitCode = report(terminal, error, chosen ? `${program.name()} ${chosen.name()}` : program.name());
}
terminal.clearStatus();
