// What the command line says of a layout file: every problem of a stage, each at its place in the file as it was written.
import { describe, expect, test } from "vitest";
import { codesOf, smallLayout, Workplace } from "./cli.js";

interface Found {
  readonly code: string;
  readonly path?: string;
  readonly at?: { readonly file: string; readonly line: number; readonly column: number };
}

const place = await Workplace.create({
  "small.ts": smallLayout,
  "parts/width.ts": "export const wide = 64;\n",
  "parts/boom.ts": 'function depth(): number {\n  throw new RangeError("no depth today");\n}\n\nexport const deep = depth();\n',
  "types.ts": `import { attention, layer, mlp, model, pattern, rmsNorm } from "layerweave";
import { wide } from "./parts/width";

export default model({
  name: "types",
  vocabSize: 64,
  dModell: 32,
  norm: rmsNorm(),
  layers: [
    layer({ mixer: attention({ nHeads: "4" }) }),
    layer({ mixer: mlp({ dFf: wide }) }),
    ...pattern("AX", { A: attention({ nHeads: 4 }) }),
  ],
});
console.log(wide);
`,
  "values.ts": `import { attention, layer, mamba, model, moe, repeat, rmsNorm } from "layerweave/dsl";
import { wide } from "./parts/width.ts";

const wrong = () =>
  attention({
    nHeads: 4,
  });

export default model({
  name: "values",
  vocabSize: 64,
  dModel: 30,
  norm: rmsNorm(),
  layers: [
\tlayer({ mixer: wrong() }),
    repeat(2, layer({ mixer: mamba({ dtRank: 100 }), channelMixer: moe({ nExperts: 2, topK: 3, dFf: wide }) })),
  ],
});
`,
  "expansion.ts": `import { block, every, mamba, mlp, model, moe, pattern, rmsNorm } from "layerweave";

const letters: string = "M?";
const m = mamba();

export default model({
  name: "expansion",
  vocabSize: 64,
  dModel: 32,
  norm: rmsNorm(),
  layers: [
    block({ layers: 4, mixer: m, channelMixer: every(2, moe({ nExperts: 2, topK: 1, dFf: 8 }), { offset: 2, otherwise: mlp({ dFf: 8 }) }) }),
    pattern(letters, { M: m }),
  ],
});
`,
  "syntax.ts": 'import { model } from "layerweave";\n\nexport default model({ name: "x" vocabSize: 3 });\n',
  "throws.ts": 'import { deep } from "./parts/boom.ts";\n\nexport default deep;\n',
  "no-export.ts": "export const layers = 3;\n",
  "no-model.ts": 'import { layer, mamba } from "layerweave";\n\nexport default layer({ mixer: mamba() });\n',
  "missing-import.ts": 'import { wide } from "./parts/absent.ts";\n\nexport default wide;\n',
  "knobs.ts": `import { layer, mamba, model, repeat, rmsNorm } from "layerweave";

export default ({ depth = 3 }: { depth?: number }) =>
  model({ name: "knobs", vocabSize: 64, dModel: 32, norm: rmsNorm(), layers: [repeat(depth, layer({ mixer: mamba() }))] });
`,
  "knobs-throw.ts": 'export default () => {\n  throw new Error("not for these knobs");\n};\n',
  "layout.js": "export default {};\n",
});

/** The diagnostics of \`check --json\`, as \`code file:line:column\`. */
function check(file: string): { readonly code: number | null; readonly found: string[]; readonly stderr: string } {
  const { code, stdout, stderr } = place.run(["check", file, "--json"]);
  const { diagnostics } = JSON.parse(stdout) as { diagnostics: Found[] };
  const found = diagnostics.map((d) => `${d.code}${d.at ? ` ${d.at.file.replace(`${place.folder}/`, "")}:${d.at.line}:${d.at.column}` : ""}`);
  return { code, found, stderr };
}

test("a valid layout, outside of any project", () => {
  const { code, stdout, stderr } = place.run(["check", "small.ts"]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  expect(stdout).toBe("small.ts is valid: small, 2 layers, 22.08K parameters (22.08K active)\n");
});

test("type errors: all of them, with their places and the lines around", () => {
  const { code, found, stderr } = check("types.ts");
  expect(code).toBe(3);
  expect(found).toEqual([
    "layout/type-error types.ts:7:3",
    "layout/type-error types.ts:10:32",
    "layout/type-error types.ts:11:13",
    "layout/type-error types.ts:12:8",
    "layout/type-error types.ts:12:22",
    "layout/type-error types.ts:15:1",
  ]);
  expect(stderr).toContain(`error layout/type-error: Type 'string' is not assignable to type 'number'. (TS2322)
  at types.ts:10:32
   9 |   layers: [
  10 |     layer({ mixer: attention({ nHeads: "4" }) }),
     |                                ^
  11 |     layer({ mixer: mlp({ dFf: wide }) }),
  help: Change the value`);
  expect(stderr).toContain("A layout is data and does no I/O");
});

test("values that no type rules out: the constructor's call in the original file, through imports and tabs", () => {
  const { code, found, stderr } = check("values.ts");
  expect(code).toBe(3);
  expect(found).toEqual(["dsl/heads-do-not-divide values.ts:5:3", "dsl/dt-rank-too-large values.ts:16:30", "dsl/top-k-above-experts values.ts:16:68"]);
  expect(stderr).toContain("at layers[1].channelMixer.topK (values.ts:16:68)");
});

test("problems of the expansion", () => {
  const { code, found } = check("expansion.ts");
  expect(code).toBe(3);
  expect(found).toEqual(["dsl/offset-beyond-period expansion.ts:12:48", "dsl/unknown-letter expansion.ts:13:5"]);
});

describe("files that give no model", () => {
  test.each([
    ["syntax.ts", 3, ["layout/syntax-error syntax.ts:3:34"], "',' expected"],
    ["throws.ts", 3, ["layout/threw parts/boom.ts:2:9"], "RangeError: no depth today"],
    ["knobs-throw.ts", 3, ["layout/threw knobs-throw.ts:2:9"], "Error: not for these knobs"],
    ["no-export.ts", 3, ["dsl/not-a-model no-export.ts:1:1"], "there is no default export"],
    ["no-model.ts", 3, ["dsl/not-a-model no-model.ts:3:1"], "the layout is layer(…)"],
    ["missing-import.ts", 3, ["layout/type-error missing-import.ts:1:22"], "./parts/absent.ts"],
    ["absent.ts", 2, ["cli/source-not-found"], "absent.ts does not exist"],
    ["layout.js", 2, ["cli/source-not-recognised"], "layout.js is no TypeScript file (.ts)"],
  ])("%s", (file, exitCode, expected, message) => {
    const { code, found, stderr } = check(file);
    expect(found).toEqual(expected);
    expect(code).toBe(exitCode);
    expect(stderr).toContain(message);
  });
});

test("a function of knobs is called with its defaults", () => {
  expect(place.run(["check", "knobs.ts"]).stdout).toContain("knobs, 3 layers");
});

test("nothing is left behind, and an invalid layout compiles to nothing", () => {
  const before = place.entries();
  expect(codesOf(place.run(["compile", "values.ts", "-o", "out/model", "--json"]))).toContain("dsl/heads-do-not-divide");
  expect(place.entries()).toEqual(before);
});
