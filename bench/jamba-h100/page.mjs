// The results as a page: what was met, throughput and memory over context, Jamba beside Mixtral.
import { formatBytes, formatCount } from "#dist/core/plan/sizes.js";
import { barsFigure } from "#dist/cli/report/bars-figure.js";
import { colourSheet, figureSheet, paint, seriesColour } from "#dist/cli/report/colours.js";
import { lineDash, linesFigure } from "#dist/cli/report/lines-figure.js";
import { el, svg, verbatim } from "#dist/cli/report/markup.js";
import { memoryFigure, memoryKinds } from "#dist/cli/report/memory-figure.js";
import { pageSheet } from "#dist/cli/report/page-sheet.js";

const names = { jamba: "Jamba-v0.1, int8", mixtral: "Mixtral-8x7B, int8", "experts-int8": "Jamba-v0.1, int8 experts" };

const singlesOf = (results, part) => results.parts[part]?.processes?.singles;

/** Of a part's cases with the same prompt, the one that decoded fastest. */
function bestCases(cases = []) {
  const best = new Map();
  for (const one of cases) if ((best.get(one.prompt)?.endToEndPerSecond ?? 0) < one.endToEndPerSecond) best.set(one.prompt, one);
  return [...best.values()].sort((a, b) => a.prompt - b.prompt);
}

const decodeRate = ({ settledPerSecond, decodePerSecond }) => settledPerSecond ?? decodePerSecond;

/** Jamba beside Mixtral at the contexts that both were run at, with the bytes that explain it. */
export function comparison(results) {
  /** Where one row is all that fits, it was run already. */
  const largest = (part, single) => {
    const found = Object.values(results.parts[`${part}-largest`]?.processes ?? {}).find(({ prompt }) => prompt === single.prompt);
    return found && { ...(found.cases?.[0] ?? single), fits: found.fits, limitedBy: found.limitedBy };
  };
  const mixtral = bestCases(singlesOf(results, "mixtral")?.cases);
  const rows = bestCases(singlesOf(results, "jamba")?.cases).flatMap((one) => {
    const other = mixtral.find(({ prompt, tokens }) => prompt === one.prompt && tokens === one.tokens);
    if (!other) return [];
    const [most, otherMost] = [largest("jamba", one), largest("mixtral", other)];
    return [{ batches: "1", jamba: one, mixtral: other }, ...(most && otherMost ? [{ batches: "largest", jamba: most, mixtral: otherMost }] : [])];
  });
  return rows.map(({ batches, jamba, mixtral }) => {
    const moved = ({ batch, stepBytes: { weights, kvCache, state } }) => `${formatBytes(weights)} of weights, ${formatBytes(kvCache)} of KV cache and ${formatBytes(state)} of other state (batch ${batch})`;
    const ratio = (of) => of(jamba) / of(mixtral);
    const ratios = { endToEnd: ratio((c) => c.endToEndPerSecond), decode: ratio(decodeRate), endToEndAtBest: ratio((c) => c.best.endToEndPerSecond), decodeAtBest: ratio((c) => c.best.decodePerSecond) };
    const limited = [["Jamba", jamba], ["Mixtral", mixtral]].filter(([, c]) => c.limitedBy?.startsWith("time")).map(([name, c]) => `${name} was run with ${c.batch} of the ${c.fits} rows that fit (${c.limitedBy})`); // prettier-ignore
    const explanation = `A step moves ${moved(jamba)} in Jamba, ${moved(mixtral)} in Mixtral: at best ${ratios.decodeAtBest.toFixed(2)} times the decode rate, ${ratios.endToEndAtBest.toFixed(2)} with prefill; measured ${ratios.decode.toFixed(2)} and ${ratios.endToEnd.toFixed(2)}. ${limited.join(". ")}`.trim();
    return { prompt: jamba.prompt, tokens: jamba.tokens, batches, jamba, mixtral, ratios, explanation };
  });
}

const note = (text) => el("p", { class: "note" }, text);
const section = (title, ...content) => el("section", { class: "wide" }, el("h2", {}, title), content);
const panel = (title, ...content) => el("figure", {}, el("figcaption", {}, title), content);
const grid = (panels) => el("div", { class: "grid" }, panels);
const table = (head, rows, kind) =>
  el("div", { class: "scroll" }, el("table", { class: kind }, el("thead", {}, el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)))), el("tbody", {}, rows.map(([first, ...cells]) => el("tr", {}, el("th", { scope: "row" }, first), cells.map((cell) => el("td", {}, cell)))))));
const lineLegend = (lines) =>
  el("ul", { class: "legend" }, lines.map(({ label }, i) => el("li", {}, el("span", { class: "stroke" }, svg(22, 8, label, el("line", { x1: 0, x2: 22, y1: 4, y2: 4, stroke: paint(seriesColour(i)), "stroke-width": 2.2, "stroke-dasharray": lineDash(i) }))), label)));

function linesPanel(title, results, measured, best) {
  const lines = ["jamba", "mixtral"].flatMap((part) => {
    const cases = bestCases(singlesOf(results, part)?.cases);
    const of = (value) => cases.map((c) => ({ context: c.prompt, value: value(c) }));
    return cases.length < 2 ? [] : [{ label: names[part], points: of(measured) }, { label: `${names[part]}, at best`, points: of(best) }];
  });
  if (lines.length === 0) return [];
  const contexts = lines.flatMap(({ points }) => points.map(({ context }) => context));
  return [panel(title, lineLegend(lines), linesFigure(title, lines, [Math.min(...contexts), Math.max(...contexts)], (value) => value.toLocaleString("en-US")))];
}

function memoryPanel(results, part) {
  const plans = results.parts[`${part}-plan`]?.processes?.plans;
  if (!plans) return [];
  const whole = plans.plans.singles;
  const asPlan = ({ context, bytes, budget, maxContext }) => ({ model: names[part], context, bytes, budget: { bytes: budget, maxContext } });
  const [single, limit] = [singlesOf(results, part), results.parts[`${part}-limit`]?.processes?.limit];
  const measured = [
    ...(single?.driver ? [{ context: single.plan.context, bytes: single.driver.most - single.driver.before }] : []),
    ...(limit?.fits.memory.card ? [{ context: limit.context, bytes: limit.fits.memory.card.usedNow }] : []),
  ];
  const contexts = [plans.overContext[0].context, Math.max(plans.overContext.at(-1).context, ...measured.map(({ context }) => context))];
  return [panel(names[part], memoryFigure({ plans: plans.overContext.map(asPlan), plan: asPlan(whole), contexts, top: plans.budget * 1.15, measured }))];
}

const valueText = (value) => (typeof value === "number" ? (Number.isInteger(value) ? value : Number(value.toPrecision(4))).toLocaleString("en-US", { maximumFractionDigits: 12 }) : String(value));

/** What the state of one sequence takes of the longest context, as it was allocated in Jamba and as it is planned for Mixtral, which has no room for it. */
function statePanel(results) {
  const [single, plans] = [singlesOf(results, "jamba"), results.parts["mixtral-plan"]?.processes?.plans];
  const other = plans?.overContext.find(({ context }) => context === single?.plan.context);
  if (!single || !other) return [];
  const rows = ["kvCache", "convState", "ssmState"].map((key, i) => [["KV cache", "conv state", "SSM state"][i], valueText(single.state[key]), valueText(other.bytes[key])]);
  return [note(`Bytes of state at ${formatCount(single.plan.context)} tokens.`), table(["", "Jamba, allocated", "Mixtral, planned"], rows)];
}

const percent = (fraction) => `${(100 * fraction).toFixed(0)} %`;
const caseRows = (part, which, cases) =>
  cases.map((c) => [`${part}, ${which}`, c.batch, formatCount(c.prompt), c.tokens, c.prefillSeconds.toFixed(3), percent(c.fractions.prefill), decodeRate(c).toFixed(1), percent(c.fractions.decode), c.endToEndPerSecond.toFixed(1), percent(c.fractions.endToEnd)]);

export function resultsPage(results) {
  const recorded = Object.entries(results.parts);
  const compared = comparison(results);
  const bars = (side, label, colour) => ({ parts: [{ name: label, value: side.endToEndPerSecond, colour }], text: `${side.endToEndPerSecond.toFixed(1)} tokens/s` });
  const comparedBars = compared.flatMap(({ prompt, batches, jamba, mixtral }) =>
    [[jamba, "Jamba", "series-0"], [mixtral, "Mixtral", "series-1"]].map(([side, name, colour]) => ({ label: `${name}, ${formatCount(prompt)}, batch ${side.batch}${batches === "largest" ? " (largest)" : ""}`, ...bars(side, name, colour) })), // prettier-ignore
  );
  const page = el(
    "html",
    { lang: "en" },
    el("head", {}, el("meta", { charset: "utf-8" }), el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }), verbatim('<link rel="icon" href="data:,">'), el("title", {}, "Jamba on one card"), el("style", {}, verbatim(colourSheet() + figureSheet + pageSheet))),
    el(
      "body",
      {},
      el(
        "main",
        {},
        el("header", {}, el("h1", {}, "Jamba-v0.1 and Mixtral-8x7B on one card"), note(`${results.card ?? `no card: ${results.cpu}`}${results.scale === "tiny" ? "; small shapes, which say nothing of speed" : ""}. GB is 10⁹ bytes. "At best" is what the same process measured as copy and product rates.`)),
        section(
          "Conditions",
          table(
            ["part", "condition", "wanted", "found", ""],
            recorded.flatMap(([name, { checks, failed }]) => [...checks.map(({ what, wanted, found, met }) => [name, what, valueText(wanted), valueText(found), met ? "met" : "missed"]), ...(failed ? [[name, "runs", "", failed, "failed"]] : [])]),
            "text",
          ),
        ),
        section("Throughput over context, batch 1", grid([
          ...linesPanel("decode, tokens/s", results, decodeRate, (c) => c.best.decodePerSecond),
          ...linesPanel("prefill, tokens/s", results, (c) => c.prompt / c.prefillSeconds, (c) => c.prompt / c.best.prefillSeconds),
        ])), // prettier-ignore
        section("Memory over context, planned and taken", note("Areas are the plan's, dots what the driver said; the dashed line is the budget."), el("ul", { class: "legend" }, memoryKinds.map(({ name, colour }) => el("li", {}, el("span", { class: "swatch", style: `background:${paint(colour)}` }), name))), grid(["jamba", "mixtral"].flatMap((part) => memoryPanel(results, part))), ...statePanel(results)),
        section("Jamba beside Mixtral, end to end", ...(comparedBars.length > 0 ? [grid([panel("output tokens/s, prefill included", barsFigure("Output tokens per second", comparedBars))])] : []), ...compared.map(({ prompt, batches, explanation }) => note(`${formatCount(prompt)}, batch ${batches}: ${explanation}`))),
        section(
          "Runs",
          note(`llama.cpp ${results.llamaCpp.release}, Jamba-v0.1 in Q8_0 on an H100 80GB, tokens/s of decode: ${Object.entries(results.llamaCpp.decodePerSecond).map(([which, rate]) => `${which} ${rate}`).join("; ")}. Prefill of 8,192 tokens: ${results.llamaCpp.prefill8192PerSecond} tokens/s.`),
          table(["part", "batch", "prompt", "tokens", "prefill, s", "of best", "decode, tokens/s", "of best", "end to end, tokens/s", "of best"], recorded.flatMap(([part, { processes }]) => Object.entries(processes).flatMap(([which, { cases }]) => (cases ? caseRows(part, which, cases) : []))),
          ),
        ),
      ),
    ),
  );
  return `<!doctype html>\n${page.markup}\n`;
}
