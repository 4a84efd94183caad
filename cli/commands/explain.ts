import { fail, registeredDiagnostics } from "../../core/diagnostics.js";
// Every part of the project registers its diagnostics when it is loaded.
import "../../compiler/index.js";
import "../../runtime/index.js";
import { cliDiagnostics } from "../diagnostics.js";
import { formatTable, wrap } from "../format.js";
import type { Terminal } from "../terminal.js";

/** Explains a diagnostic's code; without one, lists them all. */
export function explain(terminal: Terminal, code: string | undefined): void {
  const all = registeredDiagnostics();
  if (code === undefined) {
    terminal.write(formatTable(all.map(({ code, severity, explain }) => [code, severity === "warning" ? "warning" : "", firstSentence(explain)])));
    terminal.result({ diagnostics: all });
    return;
  }
  const found = all.find((entry) => entry.code === code);
  if (!found) return fail(cliDiagnostics["unknown-code"], { wanted: code, nearest: nearest(code, all.map((entry) => entry.code)) });
  terminal.write(`${found.severity} ${found.code}\n\n${wrap(found.explain)}\n`);
  terminal.result({ ...found });
}

const firstSentence = (text: string): string => /^.*?\.(?=\s|$)/.exec(text)?.[0] ?? text;

/** The code that contains what was typed, or else takes the fewest edits to reach; null when none is near. */
function nearest(wanted: string, codes: readonly string[]): string | null {
  const around = wanted.length >= 3 ? codes.find((code) => code.includes(wanted)) : undefined;
  if (around !== undefined) return around;
  const [best] = codes.map((code) => ({ code, edits: editDistance(wanted, code) })).sort((a, b) => a.edits - b.edits);
  return best && best.edits <= Math.max(2, wanted.length * 0.4) ? best.code : null;
}

/** Levenshtein distance, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1));
    row = next;
  }
  return row[b.length] ?? 0;
}
