import { chooseBackend, type BackendName } from "#dist/runtime/backends/choose.js";

/** "why" where the native runtime can't be used on this machine. */
export const noNative = ((): string | undefined => {
  const { choice } = chooseBackend("auto");
  return choice.name === "native" ? undefined : choice.why;
})();

if (noNative !== undefined) console.warn(`Tests of the native backend are left out: ${noNative}.`);

/** The backends that this machine can run, for tests that hold for each. */
export const backends: readonly BackendName[] = noNative === undefined ? ["portable", "native"] : ["portable"];
