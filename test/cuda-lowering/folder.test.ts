// What a compiled CUDA folder holds, against the same model compiled for the portable target.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { checkedLayout, compile, cuda, importCheckpoint, portable, type Target } from "layerweave/compiler";
import { bytesPerElement, type StorageDtype } from "../../core/dtype.js";
import { parseManifest, type Manifest, type ManifestWeight } from "../../core/manifest.js";
import { convertElements } from "../../compiler/weights/convert.js";
import { inRepository, temporaryFolder } from "../support/folders.js";
import { magnitude, packedRow, unpacked } from "./unpack.js";

const out = await temporaryFolder();

interface Folder {
  readonly manifest: Manifest;
  readonly bytesOf: (weight: ManifestWeight) => Promise<Uint8Array>;
}

async function compiled(name: string, target: Target, quantize: "none" | "experts-int8" | "int8"): Promise<Folder> {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", name));
  const folder = join(out, `${name}-${target.name}-${target.computeDtype}-${quantize}`);
  await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, target, quantize });
  const manifest = parseManifest(await readFile(join(folder, "manifest.json"), "utf8"), folder);
  return { manifest, bytesOf: async ({ file, offset, bytes }) => new Uint8Array((await readFile(join(folder, file))).subarray(offset, offset + bytes)) };
}

/** The parameters that a weight holds, with their rows. */
function parametersOf({ name, origin, packing, shape }: ManifestWeight): readonly { readonly name: string; readonly rows: number }[] {
  return origin.from === "parameters" ? origin.parameters : [{ name, rows: packing?.rows ?? (shape[0] as number) }];
}

const widened = (bytes: Uint8Array, dtype: StorageDtype): Float32Array => {
  const wide = new Float32Array(bytes.length / bytesPerElement[dtype]);
  convertElements({ dtype, bytes }, "float32", new Uint8Array(wide.buffer));
  return wide;
};

describe.each([
  ["jamba-block", "bfloat16", "none"],
  ["jamba-block", "float16", "int8"],
  ["mistral-swa", "bfloat16", "int8"],
  ["falcon-mamba", "float16", "none"],
  ["mixtral", "bfloat16", "experts-int8"],
] as const)("%s for CUDA in %s, quantised: %s", (name, dtype, quantize) => {
  let folder: Folder;
  let plain: Folder;
  beforeAll(async () => {
    [folder, plain] = [await compiled(name, cuda(dtype), quantize), await compiled(name, portable, quantize)];
  });

  test("every parameter is in one weight, and the counts are those of the model", () => {
    const held = folder.manifest.weights.filter((w) => w.scalesOf === undefined).flatMap((w) => parametersOf(w).map((p) => p.name));
    expect(held.sort()).toEqual(plain.manifest.weights.filter((w) => w.scalesOf === undefined).map((w) => w.name).sort());
    expect(folder.manifest.model.parameters).toEqual(plain.manifest.model.parameters);
  });

  test("matrices, norms and biases are of the compute type or int8; what kernels read in float32 is float32", () => {
    const wide = /(?:router\.weight|A_log|\.D|dt_proj\.bias|_scale)$/;
    for (const weight of folder.manifest.weights) expect([weight.name, weight.dtype]).toEqual([weight.name, wide.test(weight.name) ? "float32" : weight.dtype === "int8" ? "int8" : dtype]);
    expect(folder.manifest.weights.some((w) => w.dtype === "int8")).toBe(quantize !== "none");
    expect(folder.manifest.state.map(({ role, dtype }) => [role, dtype])).toEqual(folder.manifest.state.map(({ role }) => [role, role === "ssm_state" ? "float32" : dtype]));
  });

  test("every element is that of the portable folder, in the type and at the place where kernels read it", async () => {
    const plainWeights = new Map(plain.manifest.weights.map((w) => [w.name, w]));
    /** A parameter as the folder must store it: int8 codes as they are, everything else by its bits. */
    const expected = async (parameter: string, stored: ManifestWeight["dtype"]): Promise<readonly number[]> => {
      const weight = plainWeights.get(parameter)!;
      const bytes = await plain.bytesOf(weight);
      if (stored === "int8") return Array.from(new Int8Array(bytes.buffer));
      const converted = new Uint8Array((bytes.length / bytesPerElement[weight.dtype]) * bytesPerElement[stored]);
      convertElements({ dtype: weight.dtype as StorageDtype, bytes }, stored as StorageDtype, converted);
      return Array.from(stored === "float32" ? new Uint32Array(converted.buffer) : new Uint16Array(converted.buffer));
    };
    for (const weight of folder.manifest.weights.filter((w) => w.scalesOf === undefined)) {
      const { packing, shape } = weight;
      const bytes = await folder.bytesOf(weight);
      const stored = weight.dtype === "int8" ? new Int8Array(bytes.buffer) : weight.dtype === "float32" ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
      const parameters = parametersOf(weight);
      const wanted = (await Promise.all(parameters.map((p) => expected(p.name, weight.dtype)))).flat();
      if (!packing) {
        expect(Array.from(stored), weight.name).toEqual(wanted);
        continue;
      }
      const elements = shape.at(-2)! * shape.at(-1)!;
      const matrices = Array.from({ length: stored.length / elements }, (_, i) => unpacked(stored.subarray(i * elements, (i + 1) * elements) as Int8Array | Uint16Array, packing)).flat();
      expect(matrices.flat(), weight.name).toEqual(wanted);
      expect(magnitude(stored), `padding of ${weight.name}`).toBe(magnitude(wanted));
    }
  });

  if (quantize !== "none") test("scales stand where the packed rows do", async () => {
    const byName = new Map(folder.manifest.weights.map((w) => [w.name, w]));
    const plainWeights = new Map(plain.manifest.weights.map((w) => [w.name, w]));
    const scales = folder.manifest.weights.filter((w) => w.scalesOf !== undefined);
    expect(scales.length).toBeGreaterThan(0);
    for (const scale of scales) {
      const weight = byName.get(scale.scalesOf!)!;
      const packing = weight.packing!;
      const stack = weight.shape.length === 3 ? weight.shape[0]! : 1;
      const perMatrix = scale.shape.at(-1)!;
      const wanted = new Float32Array(stack * perMatrix);
      const parameters = parametersOf(weight);
      const each = parameters.length / stack;
      for (const [i, { name, rows }] of parameters.entries()) {
        const values = widened(await plain.bytesOf(plainWeights.get(`${name}_scale`)!), "float32");
        const before = packing.layout === "panels" ? parameters.slice(i - (i % each), i).reduce((sum, p) => sum + p.rows, 0) : 0;
        for (let row = 0; row < rows; row++) wanted[Math.floor(i / each) * perMatrix + packedRow(packing.layout, before + row, i % each)] = values[row]!;
      }
      expect(widened(await folder.bytesOf(scale), "float32"), scale.name).toEqual(wanted);
    }
  });
});

test("worker threads pack the same bytes", async () => {
  const checkpoint = await importCheckpoint(inRepository("test", "fixtures", "hf", "jamba-block"));
  const [alone, shared] = await Promise.all(
    [0, 2].map(async (workers) => {
      const folder = join(out, `workers-${workers}`);
      await compile(checkedLayout(checkpoint.spec), { out: folder, weights: { from: "checkpoint", checkpoint }, target: cuda("bfloat16"), quantize: "experts-int8", workers });
      return Promise.all(["weights.safetensors", "scales.safetensors", "manifest.json"].map((file) => readFile(join(folder, file))));
    }),
  );
  expect(alone!.map((bytes, i) => bytes.equals(shared![i]!))).toEqual([true, true, true]);
});
