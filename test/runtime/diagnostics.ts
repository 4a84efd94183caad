import { expect } from "vitest";

interface Reported {
  readonly diagnostics: readonly { readonly code: string; readonly message: string; readonly path?: string; readonly at?: object }[];
}

/** What `work` was rejected with. The package's own error class is compared by name: tests run on built files. */
export async function rejection(work: Promise<unknown>): Promise<Reported["diagnostics"]> {
  const error: unknown = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error, "it should have been rejected").toBeInstanceOf(Error);
  expect((error as Error).name, (error as Error).stack).toBe("LayerweaveError");
  return (error as unknown as Reported).diagnostics;
}

export async function codes(work: Promise<unknown>): Promise<string[]> {
  return (await rejection(work)).map(({ code }) => code);
}

export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  expect(actual.length).toBe(expected.length);
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += ((actual[i] ?? NaN) - (expected[i] ?? NaN)) ** 2;
    norm += (expected[i] ?? NaN) ** 2;
  }
  return Math.sqrt(difference / norm);
}
