import { readFileSync } from "node:fs";
import { isAbsolute, relative } from "node:path";
import type { Colors } from "picocolors/types.js";
import { type Diagnostic, renderDiagnostic } from "../core/diagnostics.js";
import type { Location } from "../core/origin.js";

/** A diagnostic as the terminal shows it: the file relative to the working folder, and the lines around the place. */
export function renderForTerminal(diagnostic: Diagnostic, colors: Colors): string {
  const { at } = diagnostic;
  const text = renderDiagnostic(at ? { ...diagnostic, at: { ...at, file: shortPath(at.file) } } : diagnostic);
  const help = text.lastIndexOf("\n  help: ");
  const severity = diagnostic.severity === "error" ? colors.red : colors.yellow;
  const head = text.slice(0, help).replace(/^\w+ \S+:/, (label) => severity(colors.bold(label)));
  return `${head}${at ? codeFrame(at, colors) : ""}${text.slice(0, help) === text ? "" : text.slice(help)}`;
}

function shortPath(file: string): string {
  const fromHere = relative(process.cwd(), file);
  return fromHere.startsWith("..") || isAbsolute(fromHere) ? file : fromHere;
}

/** The line of a place with one line before and after it, and a caret; empty when the file can't be read. */
function codeFrame({ file, line, column }: Location, colors: Colors): string {
  let lines: string[];
  try {
    lines = readFileSync(file, "utf8").split(/\r?\n/);
  } catch {
    // The frame only illustrates a place that was already named.
    return "";
  }
  const first = Math.max(1, line - 1);
  const width = String(line + 1).length;
  const gutter = (label: string) => colors.dim(`  ${label.padStart(width)} | `);
  const shown = lines.slice(first - 1, line + 1).flatMap((text, i) => {
    const number = first + i;
    const source = `\n${gutter(String(number))}${text}`;
    if (number !== line) return [source];
    // Tabs stay tabs, so that the caret stands under its character.
    const blank = text.slice(0, column - 1).replace(/[^\t]/g, " ");
    return [source, `\n${gutter("")}${blank}${colors.red("^")}`];
  });
  return shown.join("").replace(/[ \t]+$/gm, "");
}
