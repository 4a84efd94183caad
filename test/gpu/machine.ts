// What the tests that need a card share. They are written for node:test, so that a machine with a card needs neither vitest
// nor the compiler: `npm run test:gpu` here, or test/gpu/pack.mjs and what it prints there.
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { type Card, cudaCards, LayerweaveError, load, type LoadOptions, type Model } from "layerweave/runtime";

/** The repository, from build/gpu-tests/test/gpu. */
const repository = join(import.meta.dirname, "..", "..", "..", "..");
const models = process.env["LAYERWEAVE_GPU_MODELS"] ?? join(repository, "build", "gpu-models");

export const inRepository = (...path: string[]): string => join(repository, ...path);

export const dtypes = ["bfloat16", "float16"] as const;
export type GpuDtype = (typeof dtypes)[number];

const found = await cudaCards().then(
  (cards) => ({ cards, skip: undefined }),
  (error: unknown) => {
    if (!(error instanceof LayerweaveError)) throw error;
    return { cards: [] as readonly Card[], skip: error.diagnostics.map(({ message }) => message).join(" ") };
  },
);

/** For a test's options: why there is nothing to test, if so. */
export const onCard = found.skip === undefined ? {} : { skip: found.skip };
export const cards = found.cards;

/** A folder that test/gpu/compile-models.mjs compiled. */
export function compiled(name: string, dtype: GpuDtype): string {
  const folder = join(models, `${name}-${dtype}`);
  if (!existsSync(folder)) throw new Error(`${folder} is not there; run test/gpu/compile-models.mjs`);
  return folder;
}

export const open = (name: string, dtype: GpuDtype, options: LoadOptions = {}): Promise<Model> => load(compiled(name, dtype), { device: "cuda:0", context: 1024, ...options });

/** A folder that is removed when the test file is done. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-gpu-"));
  after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** ‖Δ‖ / ‖expected‖ */
export function relativeError(actual: Float32Array, expected: Float32Array): number {
  let [difference, norm] = [0, 0];
  expected.forEach((value, i) => {
    difference += ((actual[i] ?? NaN) - value) ** 2;
    norm += value ** 2;
  });
  return Math.sqrt(difference / norm);
}

/** Token ids that repeat nothing. */
export const tokens = (count: number, vocabSize = 320): number[] => Array.from({ length: count }, (_, i) => (i * 37 + (i % 7) * 11 + 5) % vocabSize);

/** The first, which must be there. */
export function only<T>(values: readonly T[]): T {
  const [value] = values;
  if (value === undefined) throw new Error("there is none");
  return value;
}
