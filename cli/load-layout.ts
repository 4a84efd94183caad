import { randomUUID } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { extname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { type Diagnostic, diagnostic, fail, InternalError, LayerweaveError } from "../core/diagnostics.js";
import type { Location } from "../core/origin.js";
import { dslDiagnostics } from "../dsl/diagnostics.js";
import type { ModelSpec } from "../dsl/model.js";
import { cliDiagnostics, layoutDiagnostics } from "./diagnostics.js";
import { withTemporaryFolder } from "./temporary-folder.js";
import { typeCheck } from "./type-check.js";

/** The DSL of the running code: a layout must build its model with the very constructors that the compiler knows. */
const dsl = new URL("../dsl/index.js", import.meta.url).href;

/** What a layout that is a function is called with: `export default ({ experts = 16 }: { experts?: number }) => model({ … })`. */
export type Knobs = Readonly<Record<string, number>>;

/** A layout file that was checked and run. */
export interface LoadedLayout {
  /** Absolute path. */
  readonly file: string;
  /**
   * The model it exports, or that its exported function returns for these knobs.
   * @throws LayerweaveError `dsl/not-a-model`, `layout/threw`
   */
  readonly model: (knobs?: Knobs) => ModelSpec;
}

/**
 * Type-checks, bundles and runs a layout file. Calls of DSL constructors in it are remembered with their place in the
 * original file, as are the places where it throws: from here on the process maps stack traces through source maps.
 * @throws LayerweaveError `cli/source-not-found`, `cli/source-not-recognised`, `layout/…` (every syntax or type error), `dsl/not-a-model`
 */
export async function loadLayout(path: string): Promise<LoadedLayout> {
  const file = resolve(path);
  const info = await stat(file).catch(() => undefined);
  if (!info) fail(cliDiagnostics["source-not-found"], { source: path });
  if (!info.isFile() || extname(file) !== ".ts") fail(cliDiagnostics["source-not-recognised"], { source: path, found: info.isFile() ? "no TypeScript file (.ts)" : "no file" });

  return withTemporaryFolder(async (folder) => {
    // A fresh name each time: a module is loaded once per URL.
    const bundled = bundle(file, path, join(folder, `${randomUUID()}.mjs`));
    const problems = await typeCheck(file);
    const outcome = await bundled;
    if (problems.length > 0) throw new LayerweaveError(problems);
    if ("problems" in outcome) throw new LayerweaveError(outcome.problems);

    process.setSourceMapsEnabled(true);
    const guard = <T>(error: unknown): T => throwAtPlace(error, path, outcome.inputs);
    const exported = await import(pathToFileURL(outcome.module).href).then((module: { readonly default?: unknown }) => module.default, guard);
    const at = await defaultExport(file);
    if (typeof exported !== "function") {
      const spec = asModel(exported, at);
      return { file, model: () => spec };
    }
    const build = exported as (knobs: Knobs) => unknown;
    return {
      file,
      model: (knobs = {}) => {
        let built: unknown;
        try {
          built = build(knobs);
        } catch (error) {
          guard(error);
        }
        return asModel(built, at);
      },
    };
  });
}

type Bundled = { readonly module: string; readonly inputs: ReadonlySet<string> } | { readonly problems: readonly Diagnostic[] };

/** Bundles a layout with the files it imports. Never rejects for what is wrong with them: the type check says it better, if it can. */
async function bundle(file: string, shown: string, module: string): Promise<Bundled> {
  const { build } = await import("esbuild");
  try {
    const { metafile } = await build({
      entryPoints: [file],
      outfile: module,
      bundle: true,
      format: "esm",
      platform: "node",
      target: "node20",
      sourcemap: "inline",
      sourcesContent: false,
      metafile: true,
      logLevel: "silent",
      // A tsconfig.json around the layout must not change what it means.
      tsconfigRaw: {},
      plugins: [{ name: "dsl", setup: ({ onResolve }) => onResolve({ filter: /^layerweave(\/dsl)?$/ }, () => ({ path: dsl, external: true })) }],
    });
    return { module, inputs: new Set(Object.keys(metafile.inputs).map((input) => resolve(input))) };
  } catch (error) {
    if (!isBuildFailure(error)) throw error;
    return {
      problems: error.errors.map(({ text, location }) => ({
        ...diagnostic(layoutDiagnostics["cannot-load"], { file: shown, problem: text }),
        ...(location ? { at: { file: resolve(location.file), line: location.line, column: location.column + 1 } } : {}),
      })),
    };
  }
}

interface BuildMessage {
  readonly text: string;
  readonly location: { readonly file: string; readonly line: number; readonly column: number } | null;
}

const isBuildFailure = (error: unknown): error is Error & { readonly errors: readonly BuildMessage[] } => error instanceof Error && "errors" in error && Array.isArray(error.errors);

/** Turns what a layout threw into a diagnostic at the innermost place that is in one of its files. */
function throwAtPlace(error: unknown, shown: string, inputs: ReadonlySet<string>): never {
  if (error instanceof LayerweaveError || error instanceof InternalError) throw error;
  const problem = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  const at = error instanceof Error ? firstPlaceIn(error.stack ?? "", inputs) : undefined;
  throw new LayerweaveError([{ ...diagnostic(layoutDiagnostics.threw, { file: shown, problem }), ...(at ? { at } : {}) }]);
}

function firstPlaceIn(stack: string, files: ReadonlySet<string>): Location | undefined {
  for (const line of stack.split("\n")) {
    const match = /^\s+at (?:.*\()?(.+?):(\d+):(\d+)\)?$/.exec(line);
    if (!match?.[1]) continue;
    const file = match[1].startsWith("file://") ? fileURLToPath(match[1]) : match[1];
    if (files.has(file)) return { file, line: Number(match[2]), column: Number(match[3]) };
  }
  return undefined;
}

/** Where the default export stands; the start of the file when it has none. */
async function defaultExport(file: string): Promise<Location> {
  const before = /^[^]*?(?=^export default\b)/m.exec(await readFile(file, "utf8"))?.[0] ?? "";
  return { file, line: before.split("\n").length, column: 1 };
}

function asModel(value: unknown, at: Location): ModelSpec {
  if (typeof value === "object" && value !== null && "kind" in value && value.kind === "model") return value as ModelSpec;
  const found =
    value === undefined
      ? "nothing (there is no default export)"
      : typeof value === "object" && value !== null && "kind" in value
        ? `${String(value.kind)}(…)`
        : value instanceof Promise
          ? "a promise"
          : `${value === null ? "null" : typeof value === "object" ? "an object" : `a ${typeof value}`}`;
  throw new LayerweaveError([{ ...diagnostic(dslDiagnostics["not-a-model"], { found }), at }]);
}
