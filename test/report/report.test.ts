/// <reference lib="dom" />
// The report, as a browser shows it: complete in itself, readable at two widths by light and dark, and with the numbers of the plan.
import { existsSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { codesOf, example, smallLayout, Workplace } from "../cli/cli.js";

const executablePath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find((path) => existsSync(path));
if (!executablePath) console.warn("Tests of the report in a browser are left out: no Chromium is installed.");
const quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

interface PlanJson {
  readonly model: string;
  readonly bytes: Readonly<Record<string, number>>;
  readonly weights: readonly { readonly kind: string; readonly dtype: string; readonly bytes: number }[];
  readonly budget: { readonly bytes: number };
}

const place = await Workplace.create({ "small.ts": smallLayout });
const sources = [example("jamba-v0.1.ts"), example("llama-2-70b.ts"), "small.ts"];
const options = ["--quantize", "experts-int8", "--context", "256K"];

test("options that are wrong leave no page, and a page is replaced as a whole", () => {
  const before = place.entries();
  expect(codesOf(place.run(["report", "small.ts", "-o", "small.ts", "--json"]))).toEqual(["cli/wrong-extension"]);
  expect(codesOf(place.run(["report", "small.ts", "absent.ts", "-o", "page.html", "--json"]))).toEqual(["cli/source-not-found"]);
  expect(codesOf(place.run(["report", "small.ts", "-o", "absent/page.html", "--json"]))).toEqual(["cli/not-writable"]);
  expect(place.entries()).toEqual(before);
  for (let i = 0; i < 2; i++) expect(place.run(["report", "small.ts", "-o", "page.html"])).toEqual({ code: 0, stdout: "", stderr: "Wrote page.html.\n" });
  expect(place.entries()).toEqual([...before, "page.html"].sort());
});

test("names are text, never markup", async () => {
  await place.write("odd.ts", smallLayout.replace('"small"', '"<script>alert(1)</script> & more"'));
  expect(place.run(["report", "odd.ts", "-o", "odd.html"]).code).toBe(0);
  const page = readFileSync(place.path("odd.html"), "utf8");
  expect(page).not.toContain("<script>alert");
  expect(page).toContain("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more");
  expect(page).not.toMatch(/NaN|undefined|Infinity/);
});

describe.skipIf(!executablePath)("in a browser", () => {
  let browser: Browser;
  let plans: readonly PlanJson[];
  beforeAll(async () => {
    browser = await chromium.launch({ executablePath: executablePath ?? "", args: quiet });
    plans = (JSON.parse(place.run(["plan", ...sources, ...options, "--json"]).stdout) as { plans: PlanJson[] }).plans;
    expect(place.run(["report", ...sources, ...options, "-o", "report.html"]).code).toBe(0);
  });
  afterAll(() => browser?.close());

  /** Opens the report; fails on whatever it asks for or complains about. */
  async function open(viewport: { readonly width: number; readonly height: number }, colorScheme: "light" | "dark"): Promise<{ readonly page: Page; readonly problems: readonly string[] }> {
    const page = await browser.newPage({ viewport, colorScheme });
    const problems: string[] = [];
    const own = pathToFileURL(place.path("report.html")).href;
    page.on("console", (message) => problems.push(`console: ${message.text()}`));
    page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
    page.on("request", (request) => request.url() !== own && !request.url().startsWith("data:") && problems.push(`request: ${request.url()}`));
    await page.goto(own);
    return { page, problems };
  }

  test.each([
    [400, "light"],
    [400, "dark"],
    [1280, "light"],
    [1280, "dark"],
  ] as const)("at %d px, %s: nothing asked for, nothing too wide, nothing too small", async (width, scheme) => {
    const { page, problems } = await open({ width, height: 900 }, scheme);
    expect(problems).toEqual([]);
    const found = await page.evaluate(() => {
      const outside = [...document.querySelectorAll("main *")].filter((element) => !element.closest(".scroll") && element.getBoundingClientRect().right > window.innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80));
      const heights = [...document.querySelectorAll("svg text")].map((text) => text.getBoundingClientRect().height);
      const luminance = (colour: string) => (colour.match(/\d+/g) ?? []).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
      const body = getComputedStyle(document.body);
      return { scrollWidth: document.documentElement.scrollWidth, outside, smallest: Math.min(...heights), background: luminance(body.backgroundColor), text: luminance(body.color) };
    });
    expect(found.scrollWidth).toBe(width);
    expect(found.outside).toEqual([]);
    expect(found.smallest).toBeGreaterThan(9);
    if (scheme === "light") expect(found.background).toBeGreaterThan(0.9);
    else expect(found.background).toBeLessThan(0.2);
    expect(Math.abs(found.background - found.text)).toBeGreaterThan(0.7);
    await page.close();
  });

  test("its numbers are the plan's", async () => {
    const { page } = await open({ width: 1280, height: 900 }, "light");
    const data = JSON.parse((await page.locator("script#plans").textContent()) ?? "") as { plans: PlanJson[] };
    expect(data.plans).toEqual(plans);
    const shown = await page.locator("table.bytes td[data-bytes]").evaluateAll((cells) => cells.map((cell) => ({ model: cell.getAttribute("data-model"), row: cell.getAttribute("data-row"), bytes: Number(cell.getAttribute("data-bytes")), text: cell.textContent ?? "" })));
    const fields = { "KV cache": "kvCache", "conv state": "convState", "SSM state": "ssmState", "second state buffers": "stateCopies", activations: "activations", logits: "logits", "kernel workspace": "workspace", "allocator rounding": "allocator", runtime: "runtime", weights: "weights", total: "total" };
    for (const { model, bytes, weights, budget } of plans) {
      const expected = new Map([...Object.entries(fields).map(([row, field]) => [row, bytes[field] ?? 0] as const), ...weights.map((item) => [`${item.kind} ${item.dtype}`, item.bytes] as const), ["budget", budget.bytes] as const]);
      const found = new Map(shown.filter((cell) => cell.model === model).map((cell) => [cell.row ?? "", cell.bytes]));
      expect(found).toEqual(new Map([...expected].filter(([, value]) => value > 0)));
    }
    for (const { bytes, text } of shown) {
      const [, value = "", unit = ""] = /^([\d.]+) ([KMGT]?B) /.exec(text) ?? [];
      const scale = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 }[unit] ?? Number.NaN;
      expect(Math.abs(Number(value) * scale - bytes) / bytes).toBeLessThan(0.01);
    }
    await page.close();
  });

  test("the budget line lies where the axis says, and every layer is drawn", async () => {
    const { page } = await open({ width: 1280, height: 900 }, "light");
    const figures = await page.locator('svg[aria-label^="Memory of"]').evaluateAll((pictures) =>
      pictures.map((picture) => {
        const line = picture.querySelector("line.budget");
        const ticks = [...picture.querySelectorAll("g.tick")].map((tick) => ({ bytes: Number(tick.getAttribute("data-bytes")), y: Number(tick.querySelector("line")?.getAttribute("y1")) }));
        return { bytes: Number(line?.getAttribute("data-bytes")), y: Number(line?.getAttribute("y1")), ticks };
      }),
    );
    expect(figures).toHaveLength(plans.length);
    for (const [i, { bytes, y, ticks }] of figures.entries()) {
      expect(bytes).toBe(plans[i]?.budget.bytes);
      const [first, last] = [ticks[0], ticks.at(-1)];
      if (!first || !last) throw new Error("an axis without ticks");
      expect(Math.abs(first.y + ((last.y - first.y) * (bytes - first.bytes)) / (last.bytes - first.bytes) - y)).toBeLessThan(0.05);
    }
    const layers = await page.locator('svg[aria-label^="The "]').evaluateAll((pictures) => pictures.map((picture) => picture.querySelectorAll("g.layer").length));
    expect(layers).toEqual([32, 80, 2]);
    await page.close();
  });
});
