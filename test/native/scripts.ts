import { spawn } from "node:child_process";

const runtime = new URL("../../dist/runtime/index.js", import.meta.url).href;

/** What a script left behind. */
export interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs a module in a process of its own: what it does to a process must not end this one. `load` and `gc` are there.
 * The process can be held to so many bytes of address space.
 */
export function runScript(code: string, environment: Readonly<Record<string, string>> = {}, addressSpace = Infinity): Promise<Ended> {
  const script = `import { load } from ${JSON.stringify(runtime)};\n${code}`;
  const node = [process.execPath, "--expose-gc", "--input-type=module", "-e", script];
  const limit = addressSpace === Infinity ? "unlimited" : String(Math.ceil(addressSpace / 1024));
  const child = spawn("bash", ["-c", 'ulimit -v "$0" && exec "$@"', limit, ...node], { env: { ...process.env, ...environment }, timeout: 100_000 });
  const text = { stdout: "", stderr: "" };
  for (const stream of ["stdout", "stderr"] as const) child[stream].setEncoding("utf8").on("data", (chunk: string) => (text[stream] += chunk));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (status, signal) => resolve({ status, signal, ...text }));
  });
}
