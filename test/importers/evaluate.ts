import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import type { ModelSpec } from "../../dsl/model.js";

/** The default export of a layout file's text, with "layerweave" as it is in this checkout. */
export async function evaluateLayout(text: string): Promise<ModelSpec> {
  const { outputFiles } = await build({
    stdin: { contents: text, loader: "ts", resolveDir: import.meta.dirname },
    alias: { layerweave: fileURLToPath(new URL("../../dsl/index.ts", import.meta.url)) },
    bundle: true,
    format: "esm",
    platform: "node",
    write: false,
  });
  const code = Buffer.from(outputFiles[0]?.contents ?? []).toString("base64");
  const module = (await import(/* @vite-ignore */ `data:text/javascript;base64,${code}`)) as { readonly default: ModelSpec };
  return module.default;
}
