import { describe, expect, test } from "vitest";
import { LayerweaveError } from "../../core/diagnostics.js";
import { checkedLayout, lower, passesFor } from "../../compiler/lower.js";
import { cuda } from "../../compiler/targets/cuda.js";
import { targetNamed } from "../../compiler/targets/index.js";
import { portable } from "../../compiler/targets/portable.js";
import { attention, layer, mamba, mlp, model, moe, type ModelSpec, rmsNorm } from "../../dsl/index.js";

type LayerSpec = Parameters<typeof layer>[0];

const withLayer = (spec: LayerSpec, dModel = 32): ModelSpec => model({ name: "m", vocabSize: 7, dModel, norm: rmsNorm(), layers: [layer(spec)] });

/** code at path, of everything that lowering for the target reports. */
function reported(spec: ModelSpec): readonly string[] {
  try {
    lower(checkedLayout(spec), cuda("float16"), () => "float16");
  } catch (error) {
    if (error instanceof LayerweaveError) return error.diagnostics.map(({ code, path, message }) => `${code} at ${path}: ${message}`);
    throw error;
  }
  return [];
}

describe("what the CUDA kernels do not take is reported with its place", () => {
  test.each<readonly [string, LayerSpec, number, RegExp]>([
    ["an odd dModel", { mixer: attention({ nHeads: 2, headDim: 8 }) }, 20, /^target\/odd-width at model\.dModel: dModel 20 /],
    ["an odd inner width", { mixer: mamba({ expand: 0.875 }) }, 32, /^target\/odd-width at layers\[0\]\.mixer\.dInner: dInner 28 /],
    ["a long convolution", { mixer: mamba({ dConv: 5 }) }, 32, /^target\/too-large at layers\[0\]\.mixer\.dConv: dConv 5 is more than the 4 /],
    ["a large state", { mixer: mamba({ dState: 129 }) }, 32, /^target\/too-large at layers\[0\]\.mixer\.dState: /],
    ["an odd head", { mixer: attention({ nHeads: 2, headDim: 12 }) }, 32, /^target\/odd-width at layers\[0\]\.mixer\.headDim: /],
    ["a large head", { mixer: attention({ nHeads: 2, headDim: 264 }) }, 32, /^target\/too-large at layers\[0\]\.mixer\.headDim: headDim 264 is more than the 256 /],
    ["an odd MLP", { channelMixer: mlp({ dFf: 30 }) }, 32, /^target\/odd-width at layers\[0\]\.channelMixer\.dFf: /],
    ["biases in an MLP", { channelMixer: mlp({ dFf: 32, bias: true }) }, 32, /^target\/mlp-bias at layers\[0\]\.channelMixer\.bias: /],
    ["many experts", { channelMixer: moe({ nExperts: 65, topK: 2, dFf: 8 }) }, 32, /^target\/too-large at layers\[0\]\.channelMixer\.nExperts: /],
    ["many choices", { channelMixer: moe({ nExperts: 16, topK: 9, dFf: 8 }) }, 32, /^target\/too-large at layers\[0\]\.channelMixer\.topK: /],
  ])("%s", (_, spec, dModel, expected) => {
    const found = reported(withLayer(spec, dModel));
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(expected);
    expect(() => lower(checkedLayout(withLayer(spec, dModel)), portable, () => "float32")).not.toThrow();
  });

  test("all of it at once, equal layers once", () => {
    const odd = layer({ mixer: mamba({ dConv: 6, dState: 200 }), channelMixer: mlp({ dFf: 12 }) });
    const found = reported(model({ name: "m", vocabSize: 7, dModel: 12, norm: rmsNorm(), layers: [odd, odd] }));
    expect(found.map((text) => text.split(":")[0])).toEqual([
      "target/odd-width at model.dModel",
      "target/too-large at layers[0].mixer.dConv",
      "target/too-large at layers[0].mixer.dState",
      "target/odd-width at layers[0].channelMixer.dFf",
    ]);
  });

  test("the largest that they take is taken", () => {
    const largest = layer({ mixer: mamba({ dConv: 4, dState: 128 }), channelMixer: moe({ nExperts: 64, topK: 8, dFf: 8 }) });
    expect(reported(model({ name: "m", vocabSize: 7, dModel: 8, norm: rmsNorm(), layers: [largest, layer({ mixer: attention({ nHeads: 1, headDim: 256 }) })] }))).toEqual([]);
  });
});

test("a target has the stages that it has a use for", () => {
  expect(passesFor(portable)).toEqual(["resolve-layout", "build-blocks", "plan-state", "lower-blocks", "attach-bodies"]);
  expect(passesFor(cuda("bfloat16"))).toEqual(["resolve-layout", "build-blocks", "plan-state", "lower-blocks", "fuse-residual-norms", "pack-weights"]);
});

test("CUDA computes in 16 bits", () => {
  expect(targetNamed("cuda").computeDtype).toBe("bfloat16");
  expect(targetNamed("cuda", "float16").computeDtype).toBe("float16");
  expect(() => targetNamed("cuda", "float32")).toThrow(/does not compute in float32/);
});
