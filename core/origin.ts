/** A place in a source file; line and column count from 1. */
export interface Location {
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

/** Where a value of a layout comes from: its path in the layout, and the call that made it. */
export interface Origin {
  readonly path: string;
  readonly at?: Location;
}

// The Error is kept instead of its text: V8 formats a stack only when it is read, and most never are.
const sites = new WeakMap<object, Error>();

/** Remembers that `value` was made by whoever called `constructor`. */
export function recordCallSite<T extends object>(value: T, constructor: (...args: never[]) => unknown): T {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 1;
  const site = new Error();
  Error.captureStackTrace(site, constructor);
  Error.stackTraceLimit = limit;
  sites.set(value, site);
  return value;
}

/** The call that made `value`, if it was recorded and the engine says. */
export function callSiteOf(value: object): Location | undefined {
  const frame = sites.get(value)?.stack?.split("\n").find((line) => line.trimStart().startsWith("at "));
  const match = frame?.match(/\(?((?:file:\/\/)?[^()\s][^()]*?):(\d+):(\d+)\)?$/);
  if (!match?.[1]) return undefined;
  const file = match[1].replace(/^\s*at (?:async )?/, "").replace(/^file:\/\//, "");
  return { file, line: Number(match[2]), column: Number(match[3]) };
}

/** Copies the call site of `from` to `to`, for values derived from a spec. */
export function inheritCallSite<T extends object>(to: T, from: object): T {
  const site = sites.get(from);
  if (site) sites.set(to, site);
  return to;
}

export function originOf(value: object, path: string): Origin {
  const at = callSiteOf(value);
  return at ? { path, at } : { path };
}
