// The ops that the native libraries register are ops of the compiler's tables: the same names, inputs, outputs and attributes.
import { existsSync } from "node:fs";
import koffi from "koffi";
import { describe, expect, test } from "vitest";
import { customDomain, customOps, packedOps } from "../../compiler/ops/index.js";
import { inRepository } from "../support/folders.js";

interface Formal {
  readonly name: string;
  readonly kind: "required" | "optional" | "variadic";
}

type Table = Readonly<Record<string, { readonly inputs: readonly Formal[]; readonly outputs: readonly Formal[]; readonly attributes: Readonly<Record<string, string>> }>>;

const all = { ...customOps, ...packedOps };
const named = (ops: readonly string[]) => ops.map((op) => `${customDomain}::${op}`);

const libraries = [
  { name: "liblayerweave_ops", missing: "node scripts/build-native.mjs", ops: named(["CachedAttention", "CausalConv", "GatedMlp", "MambaInner", "MoE", "QuantizedLinear", "SelectiveScan"]) },
  { name: "liblayerweave_ops_cuda", missing: "node scripts/build-native.mjs where nvcc is", ops: named(["AttentionInner", "PackedLinear", "PackedMambaInner", "PackedMoE", "ResidualNorm", "SelectTokens"]) },
];

describe.each(libraries)("$name", ({ name, missing, ops }) => {
  const library = inRepository("build", "native", `${name}${process.platform === "darwin" ? ".dylib" : ".so"}`);

  test.skipIf(!existsSync(library))(`registered ops match the compiler's table (skipped where build/native has no such library: ${missing})`, () => {
    const table = JSON.parse(koffi.load(library).func("const char *LayerweaveOpTable()")() as string) as Table;
    expect(Object.keys(table).sort()).toEqual([...ops].sort());
    for (const [op, registered] of Object.entries(table)) {
      const definition = all[op];
      expect(registered.inputs.map((input) => input.name), op).toEqual(definition?.inputNames);
      expect(registered.outputs, op).toEqual(definition?.outputNames.map((output) => ({ name: output, kind: "required" })));
      expect(registered.attributes, op).toEqual(definition?.attributes);
      const variadic = registered.inputs.at(-1)?.kind === "variadic";
      expect(variadic, op).toBe(definition?.inputs[1] === Number.POSITIVE_INFINITY);
      // A node passes every input up to its last, "" for an absent one.
      if (!variadic) expect([registered.inputs.length, registered.inputs.length], op).toEqual(definition?.inputs);
    }
  });
});

test("every op has kernels in a library", () => {
  expect(libraries.flatMap(({ ops }) => ops).sort()).toEqual(Object.keys(all).sort());
});
