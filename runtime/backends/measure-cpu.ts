import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { invariant } from "../../core/diagnostics.js";
import type { DeviceRates } from "./backend.js";
import type { Measurement } from "./measure-cpu-worker.js";

/** Bytes that all threads copy from together: far beyond any cache. */
const copiedBytes = 2 ** 27;
const productExtent = 1024;
const passes = 3;

/** What this machine reaches with so many threads: the best of a few short passes. Takes about two seconds and 256 MiB. */
export async function measureCpu(threads: number): Promise<DeviceRates> {
  const bytes = Math.ceil(copiedBytes / threads / 4096) * 4096;
  const copyBytesPerSecond = await bestOf(Array.from({ length: threads }, () => ({ what: "copy", bytes })));
  const gemmOperationsPerSecond = await bestOf([{ what: "product", extent: productExtent, threads }]);
  return { copyBytesPerSecond, gemmOperationsPerSecond };
}

/** The best sum of what the threads reach together. */
async function bestOf(measurements: readonly Measurement[]): Promise<number> {
  const workers = measurements.map((workerData) => new Worker(new URL("./measure-cpu-worker.js", import.meta.url), { workerData, execArgv: [] }));
  try {
    await Promise.all(workers.map((worker) => once(worker, "message")));
    let best = 0;
    for (let pass = 0; pass < passes; pass++) {
      const rates = workers.map(async (worker) => {
        worker.postMessage("measure");
        const [rate] = (await once(worker, "message")) as unknown[];
        invariant(typeof rate === "number", "a measuring thread answers with a rate");
        return rate;
      });
      best = Math.max(best, (await Promise.all(rates)).reduce((sum, rate) => sum + rate, 0));
    }
    return best;
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}
