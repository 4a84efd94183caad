import type { Location, Origin } from "./origin.js";

/** What the process exits with when a diagnostic of this kind ends a command (see `docs/cli.md`). */
export type ExitCode = 1 | 2 | 3 | 4 | 5;

/** One kind of problem a user can cause: what it says, how to fix it, and why it is a problem at all. */
export interface Definition<P> {
  readonly severity: "error" | "warning";
  readonly exitCode?: ExitCode;
  readonly message: (values: P) => string;
  readonly help: (values: P) => string;
  /** A paragraph for `layerweave explain <code>`. */
  readonly explain: string;
}

export type Coded<P> = Definition<P> & { readonly code: string };

/** Values a diagnostic carries beside its text, for `--json`. */
export type Values = Readonly<Record<string, string | number | boolean | null | readonly (string | number)[]>>;

export interface Diagnostic {
  readonly code: string;
  readonly severity: "error" | "warning";
  readonly exitCode: ExitCode;
  readonly message: string;
  readonly help: string;
  readonly path?: string;
  readonly at?: Location;
  readonly values: Values;
}

const registered = new Map<string, Coded<never>>();

/** Types the values of one definition; `catalogue` gives it its code. */
export const define = <P extends Values>(definition: Definition<P>): Definition<P> => definition;

/** Registers the diagnostics of one part of the project under `<area>/<name>`. */
export function catalogue<const D extends Readonly<Record<string, Definition<never>>>>(
  area: string,
  definitions: D,
): { readonly [K in keyof D]: D[K] & { readonly code: string } } {
  const coded = Object.fromEntries(
    Object.entries(definitions).map(([name, definition]) => {
      const entry = { ...definition, code: `${area}/${name}` };
      registered.set(entry.code, entry);
      return [name, entry];
    }),
  );
  return coded as { readonly [K in keyof D]: D[K] & { readonly code: string } };
}

/** Every registered code with its explanation, sorted. Only the areas that were imported are there. */
export function registeredDiagnostics(): readonly { code: string; severity: string; explain: string }[] {
  return [...registered.values()]
    .map(({ code, severity, explain }) => ({ code, severity, explain }))
    .sort((a, b) => (a.code < b.code ? -1 : 1));
}

export function diagnostic<P extends Values>(definition: Coded<P>, values: P, origin?: Origin): Diagnostic {
  return {
    code: definition.code,
    severity: definition.severity,
    exitCode: definition.exitCode ?? 1,
    message: definition.message(values),
    help: definition.help(values),
    ...(origin?.path === undefined ? {} : { path: origin.path }),
    ...(origin?.at === undefined ? {} : { at: origin.at }),
    values,
  };
}

/** Thrown across the public API: everything the user got wrong in one stage. */
export class LayerweaveError extends Error {
  override readonly name = "LayerweaveError";
  constructor(readonly diagnostics: readonly Diagnostic[]) {
    super(diagnostics.map(renderDiagnostic).join("\n"));
  }
  get exitCode(): ExitCode {
    return this.diagnostics.find((d) => d.severity === "error")?.exitCode ?? 1;
  }
}

/** Ends the current stage with one diagnostic. */
export function fail<P extends Values>(definition: Coded<P>, values: P, origin?: Origin): never {
  throw new LayerweaveError([diagnostic(definition, values, origin)]);
}

/** Collects the diagnostics of a stage; the stage reports everything it finds before it ends. */
export class Diagnostics {
  readonly #found: Diagnostic[] = [];

  report<P extends Values>(definition: Coded<P>, values: P, origin?: Origin): void {
    this.#found.push(diagnostic(definition, values, origin));
  }

  add(found: readonly Diagnostic[]): void {
    this.#found.push(...found);
  }

  get all(): readonly Diagnostic[] {
    return this.#found;
  }

  get hasErrors(): boolean {
    return this.#found.some((d) => d.severity === "error");
  }

  /** @throws LayerweaveError when an error was reported. */
  throwIfErrors(): void {
    if (this.hasErrors) throw new LayerweaveError(this.#found);
  }
}

/** `error dsl/…: message`, then where, then the fix. */
export function renderDiagnostic(d: Diagnostic): string {
  const at = d.at ? `${d.at.file}:${d.at.line}:${d.at.column}` : undefined;
  const where = d.path && at ? `  at ${d.path} (${at})` : d.path ? `  at ${d.path}` : at ? `  at ${at}` : undefined;
  return [`${d.severity} ${d.code}: ${d.message}`, where, `  help: ${d.help}`].filter(Boolean).join("\n");
}

/** A broken assumption of ours, never the user's mistake. */
export class InternalError extends Error {
  override readonly name = "InternalError";
  constructor(message: string) {
    super(`internal error: ${message} (this is a bug in layerweave, not in your input)`);
  }
}

export function invariant(condition: unknown, message: string | (() => string)): asserts condition {
  if (!condition) throw new InternalError(typeof message === "string" ? message : message());
}
