import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll } from "vitest";
import { inRepository } from "../support/folders.js";

const main = inRepository("dist", "cli", "main.js");

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A folder to run the command line in, outside of any project, with a temporary folder of its own. */
export class Workplace {
  readonly #temporary: string;

  private constructor(readonly folder: string) {
    this.#temporary = join(folder, ".tmp");
  }

  static async create(files: Readonly<Record<string, string>> = {}): Promise<Workplace> {
    const place = new Workplace(await mkdtemp(join(tmpdir(), "layerweave-cli-")));
    afterAll(() => rm(place.folder, { recursive: true, force: true }));
    await mkdir(place.#temporary);
    for (const [name, text] of Object.entries(files)) await place.write(name, text);
    return place;
  }

  path(...parts: readonly string[]): string {
    return join(this.folder, ...parts);
  }

  async write(name: string, text: string): Promise<void> {
    await mkdir(dirname(this.path(name)), { recursive: true });
    await writeFile(this.path(name), text);
  }

  /** Runs `layerweave` to its end. */
  run(args: readonly string[], { input = "" }: { readonly input?: string } = {}): Finished {
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], { cwd: this.folder, env: this.#env, input, encoding: "utf8" });
    return { code: status, stdout, stderr };
  }

  /** Starts `layerweave` and leaves it running. */
  start(args: readonly string[]): ChildProcess & { readonly ended: Promise<Finished> } {
    const child = spawn(process.execPath, [main, ...args], { cwd: this.folder, env: this.#env, stdio: ["ignore", "pipe", "pipe"] });
    let [stdout, stderr] = ["", ""];
    child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
    const ended = new Promise<Finished>((resolve) => child.on("close", (code) => resolve({ code, stdout, stderr })));
    return Object.assign(child, { ended });
  }

  /** What is in a folder of the workplace, hidden files too; the temporary folder must be empty and does not count. */
  entries(folder = "."): string[] {
    const left = readdirSync(this.#temporary);
    if (left.length > 0) throw new Error(`left in the temporary folder: ${left.join(", ")}`);
    return readdirSync(this.path(folder))
      .filter((name) => name !== ".tmp")
      .sort();
  }

  /** As `entries`, while something is being written; empty when the folder is not there. */
  entriesOrNone(folder: string): string[] {
    return existsSync(this.path(folder)) ? readdirSync(this.path(folder)) : [];
  }

  get #env(): NodeJS.ProcessEnv {
    return { ...process.env, TMPDIR: this.#temporary, NO_COLOR: "1", DEBUG: "" };
  }
}

/** Codes of the diagnostics in a `--json` failure. */
export function codesOf({ stdout }: Finished): string[] {
  const { schemaVersion, diagnostics } = JSON.parse(stdout) as { schemaVersion: number; diagnostics: { code: string }[] };
  if (schemaVersion !== 1) throw new Error(`schemaVersion ${schemaVersion}`);
  return diagnostics.map(({ code }) => code);
}

/** A small layout that is valid. */
export const smallLayout = `import { attention, layer, mamba, mlp, model, rmsNorm } from "layerweave";

export default model({
  name: "small",
  vocabSize: 64,
  dModel: 32,
  norm: rmsNorm(),
  contextLength: 128,
  layers: [layer({ mixer: mamba({ dState: 4 }) }), layer({ mixer: attention({ nHeads: 4 }), channelMixer: mlp({ dFf: 64 }) })],
});
`;

export const fixture = (...path: string[]): string => inRepository("test", "fixtures", "hf", ...path);
export const example = (...path: string[]): string => inRepository("examples", ...path);
