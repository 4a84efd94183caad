import { createRequire } from "node:module";

/** Name and version of this package, as written into what it produces. */
const { name, version } = createRequire(import.meta.url)("layerweave/package.json") as { name: string; version: string };
export const producer = { name, version };
