// The ops that the native library registers are the ops of the compiler's table: the same names, inputs, outputs and attributes.
import { existsSync } from "node:fs";
import koffi from "koffi";
import { expect, test } from "vitest";
import { customOps } from "../../compiler/ops/index.js";
import { inRepository } from "../support/folders.js";

const library = inRepository("build", "native", process.platform === "darwin" ? "liblayerweave_ops.dylib" : "liblayerweave_ops.so");

interface Formal {
  readonly name: string;
  readonly kind: "required" | "optional" | "variadic";
}

type Table = Readonly<Record<string, { readonly inputs: readonly Formal[]; readonly outputs: readonly Formal[]; readonly attributes: Readonly<Record<string, string>> }>>;

test.skipIf(!existsSync(library))("registered ops match the compiler's table (skipped where build/native has no library: node scripts/build-native.mjs)", () => {
  const table = JSON.parse(koffi.load(library).func("const char *LayerweaveOpTable()")() as string) as Table;
  expect(Object.keys(table).sort()).toEqual(Object.keys(customOps).sort());
  for (const [name, op] of Object.entries(customOps)) {
    const registered = table[name];
    expect(registered?.inputs.map((input) => input.name), name).toEqual(op.inputNames);
    expect(registered?.outputs, name).toEqual(op.outputNames.map((output) => ({ name: output, kind: "required" })));
    expect(registered?.attributes, name).toEqual(op.attributes);
    const variadic = registered?.inputs.at(-1)?.kind === "variadic";
    expect(variadic, name).toBe(op.inputs[1] === Number.POSITIVE_INFINITY);
    // A node passes every input up to its last, "" for an absent one.
    if (!variadic) expect([registered?.inputs.length, registered?.inputs.length], name).toEqual(op.inputs);
  }
});
