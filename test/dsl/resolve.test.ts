import { describe, expect, it } from "vitest";
import { Diagnostics } from "../../core/diagnostics.js";
import { attention, block, every, layer, mamba, mlp, model, moe, pattern, ratio, repeat, rmsNorm } from "../../dsl/index.js";
import type { ModelOptions } from "../../dsl/model.js";
import { type Layout, resolveLayout } from "../../dsl/resolve.js";

type Stack = Pick<ModelOptions, "layers"> | Pick<ModelOptions, "blocks" | "block">;

function resolved(options: Stack & Partial<ModelOptions>): Layout {
  const found = new Diagnostics();
  const layout = resolveLayout(model({ name: "m", vocabSize: 32, dModel: 48, norm: rmsNorm({ eps: 1e-4 }), ...options } as ModelOptions), found);
  expect(found.all).toEqual([]);
  return layout;
}

const attn = attention({ nHeads: 4 });
const experts = moe({ nExperts: 4, topK: 2, dFf: 64 });

/** One letter per half: A attention, M Mamba, - MLP, E experts; `.` none. */
const shape = (options: Stack & Partial<ModelOptions>) =>
  resolved(options)
    .layers.map(({ mixer, channelMixer }) => (mixer ? { attention: "A", mamba: "M" }[mixer.kind] : ".") + (channelMixer ? { mlp: "-", moe: "E" }[channelMixer.kind] : "."))
    .join(" ");

describe("the layers a layout means", () => {
  it("ratio puts the first-named mixer at its places in each period, and the others in order", () => {
    const jamba = ratio({ attention: 1, mamba: 7 }, { at: 4, attention: attn, mamba: mamba() });
    expect(shape({ blocks: 2, block: block({ layers: 8, mixer: jamba }) })).toBe("M. M. M. M. A. M. M. M. M. M. M. M. A. M. M. M.");
    const two = ratio({ mamba: 2, attention: 1 }, { at: [0, 2], attention: attn, mamba: mamba() });
    expect(shape({ blocks: 1, block: block({ layers: 6, mixer: two }) })).toBe("M. A. M. M. A. M.");
  });

  it("every starts at its offset, and counts from the start of each block", () => {
    const odd = every(2, experts, { offset: 1, otherwise: mlp({ dFf: 64 }) });
    expect(shape({ blocks: 1, block: block({ layers: 5, mixer: mamba(), channelMixer: odd }) })).toBe("M- ME M- ME M-");
    expect(shape({ blocks: 2, block: block({ layers: 3, mixer: mamba(), channelMixer: odd }) })).toBe("M- ME M- M- ME M-");
    const third = every(3, attn, { otherwise: mamba() });
    expect(shape({ blocks: 1, block: block({ layers: 5, mixer: third }) })).toBe("A. M. M. A. M.");
  });

  it("every nests: the inner one counts the same layers", () => {
    const nested = every(4, attn, { offset: 3, otherwise: every(2, attn, { otherwise: mamba() }) });
    expect(shape({ blocks: 1, block: block({ layers: 8, mixer: nested }) })).toBe("A. M. A. A. A. M. A. A.");
  });

  it("a pattern makes a layer of each letter", () => {
    const stack = pattern("M*-E", { M: mamba(), "*": attn, "-": mlp({ dFf: 64 }), E: experts });
    expect(shape({ layers: stack })).toBe("M. A. .- .E");
    const whole = pattern("LM", { L: layer({ mixer: attn, channelMixer: experts }), M: mamba() });
    expect(shape({ layers: [repeat(2, whole), layer({ channelMixer: mlp({ dFf: 64 }) })] })).toBe("AE M. AE M. .-");
  });

  it("lists, blocks and repeats follow each other", () => {
    const inner = block({ layers: [layer({ mixer: attn }), pattern("M", { M: mamba() })] });
    expect(shape({ layers: [inner, repeat(2, block({ layers: 1, mixer: mamba(), channelMixer: experts })), layer({ mixer: attn })] })).toBe("A. M. ME ME A.");
    expect(shape({ blocks: 2, block: inner })).toBe("A. M. A. M.");
  });

  it("an override changes what it names in one layer of the whole stack", () => {
    const options = { blocks: 2, block: block({ layers: 2, mixer: mamba(), channelMixer: mlp({ dFf: 64 }) }) };
    expect(shape({ ...options, overrides: { 0: { channelMixer: experts }, 3: { mixer: attn } } })).toBe("ME M- M- A-");
    const { layers } = resolved({ ...options, overrides: { 2: { norm: rmsNorm({ eps: 1e-3, weight: false }) } } });
    expect(layers.map(({ norm }) => [norm.eps, norm.weight])).toEqual([
      [1e-4, true],
      [1e-4, true],
      [1e-3, false],
      [1e-4, true],
    ]);
  });
});

describe("what is left out", () => {
  const one = (mixer: ReturnType<typeof attention> | ReturnType<typeof mamba>, more: Partial<ModelOptions> = {}) => resolved({ layers: [layer({ mixer })], ...more } as ModelOptions);

  it("is derived from the model's width in attention and Mamba", () => {
    expect(one(attention({ nHeads: 6 })).layers[0]?.mixer).toEqual({ kind: "attention", nHeads: 6, nKvHeads: 6, headDim: 8, position: { kind: "none" }, window: null, qkvBias: false, outBias: false });
    expect(one(mamba()).layers[0]?.mixer).toEqual({ kind: "mamba", dInner: 96, dState: 16, dConv: 4, dtRank: 3, innerNorm: null, convBias: true, projBias: false });
  });

  it("takes the model's eps in every norm, inner ones too", () => {
    const mixer = one(mamba({ innerNorm: { dt: rmsNorm(), b: rmsNorm({ weight: false }), c: rmsNorm({ eps: 1e-2 }) } })).layers[0]?.mixer;
    expect(mixer?.kind === "mamba" && mixer.innerNorm).toEqual({
      dt: { kind: "rms-norm", eps: 1e-4, weight: true },
      b: { kind: "rms-norm", eps: 1e-4, weight: false },
      c: { kind: "rms-norm", eps: 1e-2, weight: true },
    });
    expect(one(attn, { finalNorm: rmsNorm({ weight: false }) }).finalNorm).toEqual({ kind: "rms-norm", eps: 1e-4, weight: false });
    expect(one(attn).finalNorm).toEqual({ kind: "rms-norm", eps: 1e-4, weight: true });
  });

  it("takes a block's norm before the model's, and a layer's before both", () => {
    const [a, b] = resolved({
      blocks: 1,
      block: block({ layers: 2, mixer: mamba(), norm: rmsNorm({ eps: 1e-3 }) }),
      overrides: { 1: { norm: rmsNorm({ eps: 1e-2 }) } },
    }).layers;
    expect([a?.norm.eps, b?.norm.eps]).toEqual([1e-3, 1e-2]);
  });
});
