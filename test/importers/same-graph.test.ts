// `layerweave import` writes a layout that means what the checkpoint says: both compile to the same bytes.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadLayout } from "#dist/cli/load-layout.js";
import { printLayoutFile } from "#dist/compiler/importers/print-layout.js";
import { checkedLayout, compile, importCheckpoint } from "layerweave/compiler";
import { inRepository, temporaryFolder } from "../support/folders.js";

const out = await temporaryFolder();
const fixtures = ["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"];

test.each(fixtures)("%s", async (name) => {
  const checkpoint = await importCheckpoint(inRepository("test/fixtures/hf", name));
  const file = join(out, `${name}.ts`);
  writeFileSync(file, await printLayoutFile(checkpoint.spec));
  const written = checkedLayout((await loadLayout(file)).model({}));
  const weights = { from: "checkpoint", checkpoint } as const;
  const direct = await compile(checkedLayout(checkpoint.spec), { out: join(out, `${name}-direct`), weights });
  const byFile = await compile(written, { out: join(out, `${name}-file`), weights, layoutFile: file });
  expect(byFile.manifest.graph).toEqual(direct.manifest.graph);
  expect(byFile.manifest.model.layout.sha256).toBe(direct.manifest.model.layout.sha256);
});
