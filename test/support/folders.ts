import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll } from "vitest";

/** A folder that is removed when the test file is done. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "layerweave-test-"));
  afterAll(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** A path in the repository. */
export const inRepository = (...path: string[]) => join(import.meta.dirname, "..", "..", ...path);
