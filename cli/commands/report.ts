import { extname } from "node:path";
import { fail } from "../../core/diagnostics.js";
import { cliDiagnostics } from "../diagnostics.js";
import { type ContextAndBatch, planAll, type PlanningOptions, planRecord } from "../planning.js";
import { reportPage } from "../report/page.js";
import type { Terminal } from "../terminal.js";
import { writeWhole } from "../write-whole.js";

export interface ReportOptions extends PlanningOptions, ContextAndBatch {
  /** Page to write. */
  readonly out: string;
}

/** Writes a page with the plans of all sources. Being over the budget is a finding, not a failure. */
export async function report(terminal: Terminal, paths: readonly string[], options: ReportOptions): Promise<void> {
  const { out } = options;
  // Whatever has another name may be a source.
  if (extname(out) !== ".html") fail(cliDiagnostics["wrong-extension"], { file: out, expected: ".html" });
  const { planned, warnings } = await planAll(paths, options);
  await writeWhole(out, reportPage(planned), true);
  terminal.report(warnings);
  terminal.note(`Wrote ${out}.`);
  terminal.result({ file: out, plans: planned.map(planRecord), warnings });
}
