import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import type { Importer } from "../../compiler/importers/importer.js";
import { importConfig } from "../../compiler/importers/index.js";
import { allParameters } from "../../compiler/ir/block.js";
import { checkedLayout } from "../../compiler/lower.js";
import { buildBlocks } from "../../compiler/passes/build-blocks.js";
import { bindCheckpoint } from "../../compiler/weights/bind.js";
import { openSafetensors } from "../../compiler/weights/safetensors.js";
import { Diagnostics } from "../../core/diagnostics.js";
import { attention, block, every, layer, linearScaling, llama3Scaling, mamba, mlp, model, moe, none, ratio, repeat, rmsNorm, rope, softmaxThenTopK, yarnScaling } from "../../dsl/index.js";
import type { Layout } from "../../dsl/resolve.js";
import { type Config, falconMamba7b, fixtureConfig, imported, jambaV01, llama31, mamba130m, problemsOf, without } from "./configs.js";

describe("layouts", () => {
  test("Jamba-v0.1", () => {
    expect(imported(jambaV01, "Jamba-v0.1")).toEqual({
      warnings: [],
      spec: model({
        name: "Jamba-v0.1",
        vocabSize: 65_536,
        dModel: 4096,
        contextLength: 262_144,
        norm: rmsNorm({ eps: 1e-6 }),
        blocks: 4,
        block: block({
          layers: 8,
          mixer: ratio(
            { attention: 1, mamba: 7 },
            { at: 4, attention: attention({ nHeads: 32, nKvHeads: 8, position: none() }), mamba: mamba({ dState: 16, dConv: 4, expand: 2, dtRank: 256, innerNorm: rmsNorm() }) },
          ),
          channelMixer: every(2, moe({ nExperts: 16, topK: 2, dFf: 14_336 }), { offset: 1, otherwise: mlp({ dFf: 14_336 }) }),
        }),
      }),
    });
  });

  test("Jamba: one expert means dense layers, and dt_rank may be \"auto\"", () => {
    const { spec } = imported({ ...jambaV01, num_experts: 1, mamba_dt_rank: "auto", mamba_inner_layernorms: false });
    const layout = checkedLayout(spec);
    expect(layout.layers.every(({ channelMixer }) => channelMixer?.kind === "mlp")).toBe(true);
    expect(layout.layers[0]?.mixer).toMatchObject({ kind: "mamba", dtRank: 256, innerNorm: null });
  });

  test.each([
    [8, 4, 2, 1, 32],
    [8, 4, 2, 1, 12],
    [4, 2, 3, 0, 24],
    [3, 0, 2, 1, 7],
    [1, 0, 1, 0, 3],
    [2, 1, 1, 0, 5],
    [8, 4, 4, 3, 4],
  ])("Jamba: attention every %i from %i, experts every %i from %i, in %i layers", (attnPeriod, attnOffset, expertPeriod, expertOffset, nLayers) => {
    const { spec } = imported({ ...jambaV01, attn_layer_period: attnPeriod, attn_layer_offset: attnOffset, expert_layer_period: expertPeriod, expert_layer_offset: expertOffset, num_hidden_layers: nLayers });
    const { layers } = checkedLayout(spec);
    expect(layers.map(({ mixer, channelMixer }) => [mixer?.kind, channelMixer?.kind])).toEqual(
      Array.from({ length: nLayers }, (_, i) => [i % attnPeriod === attnOffset ? "attention" : "mamba", i % expertPeriod === expertOffset ? "moe" : "mlp"]),
    );
  });

  test("Llama 3.1", () => {
    expect(imported(llama31, "Llama-3.1-8B").spec).toEqual(
      model({
        name: "Llama-3.1-8B",
        vocabSize: 128_256,
        dModel: 4096,
        contextLength: 131_072,
        norm: rmsNorm({ eps: 1e-5 }),
        layers: [
          repeat(
            32,
            layer({
              mixer: attention({
                nHeads: 32,
                nKvHeads: 8,
                position: rope({ theta: 500_000, scaling: llama3Scaling({ factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192 }) }),
              }),
              channelMixer: mlp({ dFf: 14_336 }),
            }),
          ),
        ],
      }),
    );
  });

  test("Llama: heads and biases", () => {
    const keys = { rope_scaling: null, attention_bias: true, mlp_bias: true, head_dim: 64, tie_word_embeddings: true };
    const layout = checkedLayout(imported({ ...without(llama31, "num_key_value_heads"), ...keys }).spec);
    expect(layout.tieEmbeddings).toBe(true);
    expect(layout.layers[0]?.mixer).toMatchObject({ nHeads: 32, nKvHeads: 32, headDim: 64, qkvBias: true, outBias: true, position: { kind: "rope", theta: 500_000 } });
    expect(layout.layers[0]?.channelMixer).toEqual({ kind: "mlp", dFf: 14_336, bias: true });
  });

  const positions: readonly (readonly [string, Config, ReturnType<typeof rope>])[] = [
    ["no keys", {}, rope({ theta: 10_000 })],
    ["rope_parameters", { rope_parameters: { rope_theta: 500_000.0, rope_type: "default" } }, rope({ theta: 500_000 })],
    ["rope_theta and an old linear rope_scaling", { rope_theta: 1e6, rope_scaling: { type: "linear", factor: 4.0 } }, rope({ theta: 1e6, scaling: linearScaling({ factor: 4 }) })],
    [
      "yarn, as much as needed",
      { max_position_embeddings: 4096, rope_scaling: { rope_type: "yarn", factor: 4.0 } },
      rope({ theta: 10_000, scaling: yarnScaling({ factor: 4, originalContext: 4096 }) }),
    ],
    [
      "yarn, all keys",
      { rope_parameters: { rope_theta: 1e6, rope_type: "yarn", factor: 8.0, original_max_position_embeddings: 2048, beta_fast: 16, beta_slow: 2, attention_factor: 1.5, truncate: true } },
      rope({ theta: 1e6, scaling: yarnScaling({ factor: 8, originalContext: 2048, betaFast: 16, betaSlow: 2, attentionFactor: 1.5 }) }),
    ],
    [
      "yarn with mscale",
      { rope_scaling: { rope_type: "yarn", factor: 40, original_max_position_embeddings: 4096, mscale: 1.0, mscale_all_dim: 0.5 } },
      rope({ scaling: yarnScaling({ factor: 40, originalContext: 4096, attentionFactor: (0.1 * Math.log(40) + 1) / (0.05 * Math.log(40) + 1) }) }),
    ],
  ];
  test.each(positions)("rotary embedding: %s", (_, keys, position) => {
    const plain = without(without(llama31, "rope_theta"), "rope_scaling");
    expect(checkedLayout(imported({ ...plain, ...keys }).spec).layers[0]?.mixer).toMatchObject({ position });
  });

  test("Mistral: the window is 4096 unless the config says otherwise", () => {
    const window = (config: Config) => {
      const mixer = checkedLayout(imported(config).spec).layers[0]?.mixer;
      return mixer?.kind === "attention" ? mixer.window : undefined;
    };
    const silent = without(fixtureConfig("mistral-swa"), "sliding_window");
    expect(window(fixtureConfig("mistral-swa"))).toBe(16);
    expect(window({ ...silent, head_dim: null })).toBe(4096);
    expect(window({ ...silent, sliding_window: null })).toBeNull();
  });

  test("Mixtral renormalises the chosen experts' weights", () => {
    const layout = checkedLayout(imported(fixtureConfig("mixtral")).spec);
    expect(layout.layers).toHaveLength(3);
    expect(layout.layers[2]).toMatchObject({
      mixer: { nHeads: 4, nKvHeads: 2, headDim: 16, window: null, position: { theta: 1_000_000 } },
      channelMixer: moe({ nExperts: 4, topK: 2, dFf: 112, router: softmaxThenTopK({ renormalise: true }) }),
    });
  });

  test("Mamba: the original implementation's keys are accounted for, embeddings are tied by default", () => {
    const layout = checkedLayout(imported(mamba130m).spec);
    expect(layout).toMatchObject({ vocabSize: 50_280, dModel: 768, tieEmbeddings: true, contextLength: null, finalNorm: { eps: 1e-5 } });
    expect(layout.layers).toHaveLength(24);
    expect(layout.layers[0]).toMatchObject({ mixer: { dInner: 1536, dState: 16, dConv: 4, dtRank: 48, innerNorm: null, convBias: true, projBias: false }, channelMixer: null });
  });

  test("Falcon-Mamba: inner norms without weights; intermediate_size wins over expand, with a warning", () => {
    const { spec, warnings } = imported(falconMamba7b);
    const norm = { kind: "rms-norm", eps: 1e-6, weight: false };
    expect(checkedLayout(spec)).toMatchObject({ tieEmbeddings: false, layers: Array.from({ length: 64 }, () => ({ mixer: { dInner: 8192, dtRank: 256, innerNorm: { dt: norm, b: norm, c: norm } } })) });
    expect(warnings.map(({ code, severity }) => [code, severity])).toEqual([["import/expand-overruled", "warning"]]);
    expect(imported(fixtureConfig("falcon-mamba")).warnings).toEqual([]);
  });

  test("ignored keys are listed with their reasons", () => {
    const { ignoredKeys } = importConfig(jambaV01, "test", new Diagnostics());
    expect(ignoredKeys).toContainEqual({ key: "use_mamba_kernels", reason: "chooses between implementations of one formula" });
    const used = ["hidden_size", "n_ctx", "mamba_inner_layernorms"];
    expect(ignoredKeys.filter(({ key }) => used.includes(key))).toEqual([]);
  });
});

describe("bad configs", () => {
  const cases: readonly (readonly [string, Config, string, RegExp])[] = [
    ["no model_type", without(jambaV01, "model_type"), "import/unsupported-model-type", /no model_type/],
    ["an unknown family", { ...jambaV01, model_type: "gpt2" }, "import/unsupported-model-type", /"gpt2"/],
    ["an unknown key", { ...llama31, logit_softcap: 30 }, "import/unknown-config-key", /logit_softcap to 30/],
    ["an unknown key inside a section", { ...llama31, rope_scaling: { rope_type: "linear", factor: 2, finetuned: true } }, "import/unknown-config-key", /rope_scaling\.finetuned to true/],
    ["a missing key", without(jambaV01, "hidden_size"), "import/missing-config-key", /lacks hidden_size/],
    ["a key that is null", { ...llama31, num_hidden_layers: null }, "import/missing-config-key", /lacks num_hidden_layers/],
    ["a missing period", without(jambaV01, "attn_layer_period"), "import/missing-config-key", /lacks attn_layer_period/],
    ["a string for a number", { ...llama31, vocab_size: "many" }, "import/config-type", /vocab_size is "many".*whole number/],
    ["a fraction for a count", { ...llama31, hidden_size: 64.5 }, "import/config-type", /hidden_size is 64.5/],
    ["a number for a flag", { ...llama31, attention_bias: 1 }, "import/config-type", /attention_bias is 1.*true or false/],
    ["a number for a section", { ...llama31, rope_scaling: 4 }, "import/config-type", /rope_scaling is 4.*an object/],
    ["an infinite number", { ...llama31, rope_theta: { __float__: "Infinity" } }, "import/config-type", /rope_theta is Infinity/],
    ["another activation", { ...llama31, hidden_act: "gelu" }, "import/unsupported-config-value", /hidden_act is "gelu"/],
    ["a classifier", { ...llama31, architectures: ["LlamaForSequenceClassification"] }, "import/unsupported-config-value", /architectures/],
    ["quantized weights", { ...llama31, quantization_config: { quant_method: "fp8" } }, "import/unsupported-config-value", /quantization_config/],
    ["dynamic rotary scaling", { ...llama31, rope_scaling: { type: "dynamic", factor: 2 } }, "import/unsupported-config-value", /rope_scaling\.type is "dynamic"/],
    ["LongRoPE", { ...llama31, rope_scaling: { rope_type: "longrope" } }, "import/unsupported-config-value", /rope_scaling\.rope_type is "longrope"/],
    ["partial rotary embedding", { ...llama31, partial_rotary_factor: 0.5 }, "import/unsupported-config-value", /partial_rotary_factor/],
    ["a window in Jamba", { ...jambaV01, sliding_window: 4096 }, "import/unsupported-config-value", /sliding_window is 4096/],
    ["a convolution of one token", { ...mamba130m, conv_kernel: 1 }, "import/unsupported-config-value", /conv_kernel is 1/],
    ["heads that don't divide the width", { ...llama31, num_attention_heads: 24 }, "import/contradictory-config", /hidden_size, num_attention_heads.*4096 is not divisible by 24/],
    ["key/value heads that don't divide the heads", { ...llama31, num_key_value_heads: 5 }, "import/contradictory-config", /num_key_value_heads.*32 is not divisible by 5/],
    ["an odd head", { ...llama31, head_dim: 17 }, "import/contradictory-config", /even head_dim, not 17/],
    ["more experts per token than there are", { ...jambaV01, num_experts_per_tok: 17 }, "import/contradictory-config", /num_experts_per_tok, num_experts.*17 of 16/],
    ["the same in Mixtral", { ...fixtureConfig("mixtral"), num_experts_per_tok: 5 }, "import/contradictory-config", /num_local_experts/],
    ["an attention offset beyond its period", { ...jambaV01, attn_layer_offset: 8 }, "import/contradictory-config", /attn_layer_offset.*offset 8.*period 8/],
    ["an expert offset beyond its period", { ...jambaV01, expert_layer_offset: 2 }, "import/contradictory-config", /expert_layer_offset/],
    ["a negative offset", { ...jambaV01, attn_layer_offset: -1 }, "import/config-type", /attn_layer_offset is -1/],
    ["block types that disagree with the period", { ...jambaV01, layers_block_type: Array.from({ length: 32 }, () => "mamba") }, "import/contradictory-config", /layers_block_type/],
    ["a time step rank beyond the channels", { ...mamba130m, time_step_rank: 2000 }, "import/contradictory-config", /time_step_rank.*2000 exceeds.*1536/],
    ["an inner width that is not expand times the width", { ...mamba130m, intermediate_size: 1500 }, "import/contradictory-config", /intermediate_size is 1500.*1536/],
    ["an old name that disagrees", { ...mamba130m, n_layer: 12 }, "import/contradictory-config", /n_layer is 12.*24/],
    ["two thetas", { ...llama31, rope_scaling: null, rope_parameters: { rope_theta: 10_000 } }, "import/contradictory-config", /rope_theta.*500000 is not 10000/],
    ["rotary scaling said twice", { ...llama31, rope_theta: null, rope_parameters: { rope_theta: 10_000, rope_type: "default" } }, "import/contradictory-config", /rope_parameters, rope_scaling/],
    ["two types of scaling", { ...llama31, rope_scaling: { type: "linear", rope_type: "default", factor: 2 } }, "import/contradictory-config", /"linear" is not "default"/],
    [
      "an empty range of frequencies",
      { ...llama31, rope_scaling: { rope_type: "llama3", factor: 8, low_freq_factor: 4, high_freq_factor: 1, original_max_position_embeddings: 8192 } },
      "import/contradictory-config",
      /rope_scaling\.low_freq_factor.*4 is not below 1/,
    ],
    ["scaling without a factor", { ...llama31, rope_scaling: { rope_type: "linear" } }, "import/missing-config-key", /lacks rope_scaling\.factor/],
  ];
  test.each(cases)("%s", (_, config, code, message) => {
    const problems = problemsOf(config);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatchObject({ code, severity: "error", exitCode: 1, message: expect.stringMatching(message) as string });
    expect(problems[0]?.help).not.toBe("");
  });

  test("all problems of a config are reported at once", () => {
    const config = { ...without(jambaV01, "hidden_size"), hidden_act: "relu", attn_layer_offset: 9, mystery: [1] };
    expect(problemsOf(config).map(({ code }) => code).sort()).toEqual([
      "import/contradictory-config",
      "import/missing-config-key",
      "import/unknown-config-key",
      "import/unsupported-config-value",
    ]);
  });

  test("an empty config of a family is no crash", () => {
    for (const modelType of ["jamba", "llama", "mistral", "mixtral", "mamba", "falcon_mamba"])
      expect(new Set(problemsOf({ model_type: modelType }).map(({ code }) => code))).toEqual(new Set(["import/missing-config-key"]));
  });

  test("the supported families are named", () => {
    expect(problemsOf({ model_type: "rwkv" })[0]?.help).toMatch(/jamba, llama, mistral, mixtral, mamba, falcon_mamba/);
  });

  test("unknown keys are warnings when they are allowed", () => {
    const { spec, warnings } = imported({ ...llama31, logit_softcap: 30 }, "test", true);
    expect(spec).toEqual(imported(llama31).spec);
    expect(warnings.map(({ code, severity }) => [code, severity])).toEqual([["import/unknown-config-key-ignored", "warning"]]);
  });
});

describe("tensors", () => {
  function open(config: Config): { readonly importer: Importer; readonly layout: Layout; readonly names: (parameter: string) => readonly string[] } {
    const { importer, spec } = importConfig(config, "test", new Diagnostics());
    const layout = checkedLayout(spec);
    return { importer, layout, names: (parameter) => importer.sources(parameter, layout).map(({ tensor }) => tensor) };
  }

  test.each(["jamba-block", "jamba-two-blocks", "jamba-dense", "mixtral", "llama", "mistral-swa", "mamba", "falcon-mamba"] as const)("%s: every parameter has a tensor of its own, and none is left over", async (fixture) => {
    const { importer, layout } = open(fixtureConfig(fixture));
    const checkpoint = await openSafetensors(fileURLToPath(new URL(`../fixtures/hf/${fixture}`, import.meta.url)));
    const parameters = allParameters(buildBlocks(layout));
    const { tensors, warnings } = bindCheckpoint(parameters, checkpoint, importer, layout);
    expect(warnings).toEqual([]);
    expect([...tensors.keys()]).toEqual(parameters.map(({ name }) => name));
    expect([...tensors.values()].map(({ tensor }) => tensor.name).sort()).toEqual([...checkpoint.tensors.keys()].sort());
  });

  test("Jamba, as published, as before the library knew it, and packed", () => {
    const { importer, layout, names } = open(fixtureConfig("jamba-block"));
    expect(names("layers.0.mamba.in_proj.weight")).toEqual(["model.layers.0.mamba.in_proj.weight"]);
    expect(names("layers.0.mamba.b_norm.weight")).toEqual(["model.layers.0.mamba.b_layernorm.weight", "model.layers.0.mamba.B_layernorm.weight"]);
    expect(names("layers.4.attention.q_proj.weight")).toEqual(["model.layers.4.self_attn.q_proj.weight"]);
    expect(names("layers.4.channel_mixer_norm.weight")).toEqual(["model.layers.4.pre_ff_layernorm.weight", "model.layers.4.pre_moe_layernorm.weight"]);
    expect(names("layers.0.mlp.up_proj.weight")).toEqual(["model.layers.0.feed_forward.up_proj.weight", "model.layers.0.moe.experts.0.up_proj.weight"]);
    expect(names("layers.1.moe.router.weight")).toEqual(["model.layers.1.feed_forward.router.weight", "model.layers.1.moe.router.weight"]);
    // 4 experts of 112 · 64 elements a matrix
    const packed = (name: string) => importer.sources(`layers.1.moe.experts.${name}.weight`, layout).at(-1);
    expect(packed("0.gate_proj")).toEqual({ tensor: "model.layers.1.feed_forward.experts.gate_up_proj", slice: { start: 0, length: 7168, of: [4, 224, 64] } });
    expect(packed("0.up_proj")).toEqual({ tensor: "model.layers.1.feed_forward.experts.gate_up_proj", slice: { start: 7168, length: 7168, of: [4, 224, 64] } });
    expect(packed("3.gate_proj")).toEqual({ tensor: "model.layers.1.feed_forward.experts.gate_up_proj", slice: { start: 6 * 7168, length: 7168, of: [4, 224, 64] } });
    expect(packed("3.down_proj")).toEqual({ tensor: "model.layers.1.feed_forward.experts.down_proj", slice: { start: 3 * 7168, length: 7168, of: [4, 64, 112] } });
  });

  test("Mixtral, as published and packed", () => {
    const { names } = open(fixtureConfig("mixtral"));
    expect(names("layers.2.moe.router.weight")).toEqual(["model.layers.2.block_sparse_moe.gate.weight", "model.layers.2.mlp.gate.weight"]);
    expect(names("layers.2.moe.experts.3.gate_proj.weight")).toEqual(["model.layers.2.block_sparse_moe.experts.3.w1.weight", "model.layers.2.mlp.experts.gate_up_proj"]);
    expect(names("layers.2.moe.experts.3.up_proj.weight")).toEqual(["model.layers.2.block_sparse_moe.experts.3.w3.weight", "model.layers.2.mlp.experts.gate_up_proj"]);
    expect(names("layers.2.moe.experts.3.down_proj.weight")).toEqual(["model.layers.2.block_sparse_moe.experts.3.w2.weight", "model.layers.2.mlp.experts.down_proj"]);
  });

  test("Llama and Mamba", () => {
    const llama = open(fixtureConfig("llama"));
    expect(llama.names("embedding.weight")).toEqual(["model.embed_tokens.weight"]);
    expect(llama.names("final_norm.weight")).toEqual(["model.norm.weight"]);
    expect(llama.names("layers.1.mlp.gate_proj.weight")).toEqual(["model.layers.1.mlp.gate_proj.weight"]);
    expect(llama.names("layers.10.channel_mixer_norm.weight")).toEqual(["model.layers.10.post_attention_layernorm.weight"]);
    const mamba = open(fixtureConfig("mamba"));
    expect(mamba.names("embedding.weight")).toEqual(["backbone.embeddings.weight", "backbone.embedding.weight"]);
    expect(mamba.names("layers.2.mamba.A_log")).toEqual(["backbone.layers.2.mixer.A_log"]);
    expect(mamba.names("layers.2.mixer_norm.weight")).toEqual(["backbone.layers.2.norm.weight"]);
  });

  test("a parameter that the family does not have has no source", () => {
    expect(open(fixtureConfig("llama")).names("layers.0.mamba.A_log")).toEqual([]);
  });

  test("rotary frequencies and a tied output projection are no unknown tensors", () => {
    const ignored = (name: string) => open(fixtureConfig("llama")).importer.ignoredTensors.some(({ pattern }) => pattern.test(name));
    expect(["model.layers.3.self_attn.rotary_emb.inv_freq", "lm_head.weight", "model.layers.3.extra", "score.weight"].map(ignored)).toEqual([true, true, false, false]);
  });
});
