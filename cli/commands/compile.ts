import { resolve } from "node:path";
import { compile, type Compiled, importCheckpoint, type PassName, passesFor, targetNamed, type TargetName, type Trace, type WeightSource } from "../../compiler/index.js";
import { fail } from "../../core/diagnostics.js";
import type { StorageDtype } from "../../core/dtype.js";
import type { Quantization } from "../../core/plan/weights.js";
import { cliDiagnostics } from "../diagnostics.js";
import { formatBytes, formatCount, formatTable } from "../format.js";
import { untilInterrupted } from "../interrupt.js";
import { openSource, type Source, type SourceOptions } from "../source.js";
import type { Terminal } from "../terminal.js";

export interface CompileCommandOptions extends SourceOptions {
  readonly out: string;
  /** Hugging Face folder. */
  readonly weights?: string;
  /** Seed. */
  readonly random?: number;
  readonly target: TargetName;
  readonly dtype?: StorageDtype;
  readonly quantize: Quantization;
  readonly printIrAfter?: PassName | "all";
}

/** Compiles a source into a folder. With `printIrAfter`, standard output carries the IR and nothing else. */
export async function compileSource(terminal: Terminal, path: string, options: CompileCommandOptions): Promise<void> {
  const { out, dtype, quantize, printIrAfter } = options;
  const target = targetNamed(options.target, dtype);
  const passes = passesFor(target);
  if (printIrAfter !== undefined && printIrAfter !== "all" && !passes.includes(printIrAfter)) fail(cliDiagnostics["no-such-pass"], { pass: printIrAfter, target: target.name, passes });
  const source = await openSource(path, options);
  if (source.kind === "compiled" && resolve(out) === resolve(path)) fail(cliDiagnostics["output-is-source"], { folder: path });
  const weights = await weightsFor(source, options);
  if (weights.from === "none") terminal.note("No weights: only the graph and the manifest are written (--weights <hf-folder> or --random <seed> adds them).");
  const ir: Partial<Record<PassName, string>> = {};
  const trace: Trace = (pass, text) => {
    if (printIrAfter !== pass && printIrAfter !== "all") return;
    ir[pass] = text();
    terminal.write(printIrAfter === "all" ? `// after ${pass}\n${ir[pass]}\n` : (ir[pass] ?? ""));
  };
  const compiled = await untilInterrupted((signal) =>
    compile(source.layout, {
      out,
      weights,
      target,
      quantize,
      trace,
      signal,
      onProgress: terminal.progress("writing weights"),
      ...(dtype === undefined ? {} : { dtype }),
      ...(source.kind === "layout-file" ? { layoutFile: path } : {}),
    }),
  );
  terminal.report(compiled.warnings);
  const summary = summarise(compiled);
  if (printIrAfter === undefined) terminal.write(summary);
  else terminal.note(summary.trimEnd());
  const { manifest, folder, warnings } = compiled;
  terminal.result({ folder, model: manifest.model, graph: manifest.graph, files: manifest.files, warnings, ...(printIrAfter === undefined ? {} : { ir }) });
}

/** A checkpoint brings its own weights unless others are asked for; a layout has none. */
async function weightsFor(source: Source, { weights, random, allowUnknownKeys = false }: CompileCommandOptions): Promise<WeightSource> {
  if (random !== undefined) return { from: "random", seed: random };
  if (weights !== undefined) return { from: "checkpoint", checkpoint: await importCheckpoint(weights, { allowUnknownKeys }) };
  return source.kind === "checkpoint" ? { from: "checkpoint", checkpoint: source.checkpoint } : { from: "none" };
}

function summarise({ folder, manifest: { model, graph, files } }: Compiled): string {
  const how = { "hard-link": "linked to the checkpoint", reflink: "shares blocks with the checkpoint", copy: "copied", written: "written" } as const;
  return (
    `${model.name}: ${model.nLayers} layers, ${formatCount(model.parameters.total)} parameters → ${folder}\n` +
    formatTable([[graph.file, formatBytes(graph.bytes), `opset ${graph.opset}, computes in ${graph.computeDtype}`], ...files.map(({ file, bytes, from }) => [file, formatBytes(bytes), how[from]])], { right: [1], indent: "  " })
  );
}
