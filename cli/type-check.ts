import { fileURLToPath } from "node:url";
import { type Diagnostic, diagnostic } from "../core/diagnostics.js";
import type { Location } from "../core/origin.js";
import { layoutDiagnostics } from "./diagnostics.js";

/** Declarations of the DSL that belong to the running code, so that a layout needs no project around it. */
const declarations = fileURLToPath(new URL("../dsl/index.d.ts", import.meta.url));

/**
 * Type-checks a layout file and the files it imports.
 * @returns all syntax errors, or else all type errors; empty when there are none.
 */
export async function typeCheck(file: string): Promise<readonly Diagnostic[]> {
  // Loading the TypeScript compiler takes longer than anything else here; commands that see no layout file do without.
  const { Project, ts } = await import("ts-morph");
  const project = new Project({
    skipAddingFilesFromTsConfig: true,
    compilerOptions: {
      target: ts.ScriptTarget.ES2022,
      lib: ["lib.es2023.d.ts"],
      module: ts.ModuleKind.ESNext,
      moduleResolution: ts.ModuleResolutionKind.Bundler,
      strict: true,
      skipLibCheck: true,
      noEmit: true,
      allowImportingTsExtensions: true,
      types: [],
      paths: { layerweave: [declarations], "layerweave/dsl": [declarations] },
    },
  });
  project.addSourceFileAtPath(file);
  const program = project.getProgram().compilerObject;
  const written = program.getSourceFiles().filter((source) => !source.isDeclarationFile);

  const syntax = written.flatMap((source) => program.getSyntacticDiagnostics(source));
  const found = syntax.length > 0 ? syntax : written.flatMap((source) => program.getSemanticDiagnostics(source));
  return found.map(({ messageText, code, file: source, start }) => {
    const problem = ts.flattenDiagnosticMessageText(messageText, "\n");
    const definition = layoutDiagnostics[syntax.length > 0 ? "syntax-error" : "type-error"];
    const at = source && start !== undefined ? toLocation(source.fileName, source.getLineAndCharacterOfPosition(start)) : undefined;
    return { ...diagnostic(definition, { problem, number: code }), ...(at ? { at } : {}) };
  });
}

const toLocation = (file: string, { line, character }: { readonly line: number; readonly character: number }): Location => ({ file, line: line + 1, column: character + 1 });
