import type { Moe } from "../../dsl/channel-mixers/moe.js";
import type { Mlp } from "../../dsl/channel-mixers/mlp.js";
import type { Attention } from "../../dsl/mixers/attention.js";
import type { Mamba } from "../../dsl/mixers/mamba.js";
import type { RmsNorm } from "../../dsl/norms.js";
import type { Rope } from "../../dsl/positions.js";
import type { Layout } from "../../dsl/resolve.js";

// What a layout means, written from the papers and from transformers' modelling code in float64, one token and one element at a
// time, over the whole sequence at once. It shares nothing with the compiler but the layout and the names of the weights.

/** Elements of each weight in row-major order; linear layers are [out, in]. */
export type Weights = ReadonlyMap<string, Float64Array>;

export interface Evaluation {
  /** Per token, its logits [V]. */
  readonly logits: readonly Float64Array[];
  /** State after the last token, by `layer.role`: key and value [G, T, P], conv_state [I, K - 1], ssm_state [I, N]. */
  readonly state: ReadonlyMap<string, Float64Array>;
  /** Smallest distance between the logits of an expert that was just chosen and of one that was just not; Infinity without a choice. */
  readonly routingMargin: number;
}

export function evaluate(layout: Layout, weights: Weights, tokens: readonly number[]): Evaluation {
  const evaluation = new Evaluator(layout, weights);
  const logits = evaluation.run(tokens);
  return { logits, state: evaluation.state, routingMargin: evaluation.routingMargin };
}

type Sequence = readonly Float64Array[];

class Evaluator {
  readonly state = new Map<string, Float64Array>();
  routingMargin = Number.POSITIVE_INFINITY;

  constructor(
    private readonly layout: Layout,
    private readonly weights: Weights,
  ) {}

  run(tokens: readonly number[]): Float64Array[] {
    const { dModel, layers, finalNorm, vocabSize, tieEmbeddings } = this.layout;
    const embedding = this.weight("embedding.weight", vocabSize * dModel);
    let x: Sequence = tokens.map((id) => embedding.slice(id * dModel, (id + 1) * dModel));
    layers.forEach(({ norm, mixer, channelMixer }, i) => {
      if (mixer) {
        const normed = x.map((row) => this.rmsNorm(row, norm, `layers.${i}.mixer_norm`));
        const name = `layers.${i}.${mixer.kind}`;
        x = sum(x, mixer.kind === "attention" ? this.attention(mixer, name, i, normed) : this.mamba(mixer, name, i, normed));
      }
      if (channelMixer) {
        const normed = x.map((row) => this.rmsNorm(row, norm, `layers.${i}.channel_mixer_norm`));
        const name = `layers.${i}.${channelMixer.kind}`;
        x = sum(x, normed.map((row) => (channelMixer.kind === "mlp" ? this.mlp(channelMixer, name, row) : this.moe(channelMixer, name, row))));
      }
    });
    const head = tieEmbeddings ? embedding : this.weight("lm_head.weight", vocabSize * dModel);
    return x.map((row) => multiply(head, this.rmsNorm(row, finalNorm, "final_norm")));
  }

  weight(name: string, elements: number): Float64Array {
    const found = this.weights.get(name);
    if (found?.length !== elements) throw new Error(`${name}: ${elements} elements expected, ${found?.length ?? "none"} found`);
    return found;
  }

  /** W x + b for W `name.weight` [out, x.length] and, where `bias`, b `name.bias`. */
  linear(name: string, x: Float64Array, out: number, bias: boolean): Float64Array {
    const y = multiply(this.weight(`${name}.weight`, out * x.length), x);
    return bias ? add(y, this.weight(`${name}.bias`, out)) : y;
  }

  /** x / sqrt(mean(x²) + ε) · w (arXiv 1910.07467, eq. 4) */
  rmsNorm(x: Float64Array, { eps, weight }: RmsNorm, name: string): Float64Array {
    const scale = weight ? this.weight(`${name}.weight`, x.length) : undefined;
    const meanSquare = x.reduce((total, v) => total + v * v, 0) / x.length;
    return x.map((v, i) => (v / Math.sqrt(meanSquare + eps)) * (scale?.[i] ?? 1));
  }

  /** softmax(q·k / √P) v over the visible positions (arXiv 1706.03762), heads grouped (arXiv 2305.13245). */
  attention(spec: Attention, name: string, layer: number, x: Sequence): Sequence {
    const { nHeads, nKvHeads, headDim, position, window, qkvBias, outBias } = spec;
    const turn = (heads: Float64Array, at: number) => (position.kind === "rope" ? rotateHeads(heads, headDim, position, at) : heads);
    const queries = x.map((row, t) => turn(this.linear(`${name}.q_proj`, row, nHeads * headDim, qkvBias), t));
    const keys = x.map((row, t) => turn(this.linear(`${name}.k_proj`, row, nKvHeads * headDim, qkvBias), t));
    const values = x.map((row) => this.linear(`${name}.v_proj`, row, nKvHeads * headDim, qkvBias));
    this.state.set(`${layer}.key`, headsFirst(keys, nKvHeads, headDim));
    this.state.set(`${layer}.value`, headsFirst(values, nKvHeads, headDim));
    return queries.map((query, t) => {
      const attended = new Float64Array(nHeads * headDim);
      const first = window === null ? 0 : Math.max(0, t - window + 1);
      for (let head = 0; head < nHeads; head++) {
        const group = Math.floor((head * nKvHeads) / nHeads);
        const scores: number[] = [];
        for (let s = first; s <= t; s++) {
          let score = 0;
          for (let p = 0; p < headDim; p++) score += query[head * headDim + p]! * keys[s]![group * headDim + p]!;
          scores.push(score / Math.sqrt(headDim));
        }
        softmax(scores).forEach((share, i) => {
          for (let p = 0; p < headDim; p++) attended[head * headDim + p]! += share * values[first + i]![group * headDim + p]!;
        });
      }
      return this.linear(`${name}.o_proj`, attended, this.layout.dModel, outBias);
    });
  }

  /** Mamba-1 (arXiv 2312.00752, algorithm 2 and figure 3), with Jamba's inner norms (arXiv 2403.19887). */
  mamba(spec: Mamba, name: string, layer: number, x: Sequence): Sequence {
    const { dInner, dState, dConv, dtRank, innerNorm, convBias, projBias } = spec;
    const kernel = this.weight(`${name}.conv1d.weight`, dInner * dConv);
    const kernelBias = convBias ? this.weight(`${name}.conv1d.bias`, dInner) : undefined;
    const aLog = this.weight(`${name}.A_log`, dInner * dState);
    const skip = this.weight(`${name}.D`, dInner);
    const both = x.map((row) => this.linear(`${name}.in_proj`, row, 2 * dInner, projBias));
    const h = new Float64Array(dInner * dState);
    const y = both.map((row, t) => {
      const u = new Float64Array(dInner);
      for (let i = 0; i < dInner; i++) {
        let convolved = kernelBias?.[i] ?? 0;
        for (let k = 0; k < dConv; k++) convolved += kernel[i * dConv + k]! * (both[t - dConv + 1 + k]?.[i] ?? 0);
        u[i] = silu(convolved);
      }
      const projected = this.linear(`${name}.x_proj`, u, dtRank + 2 * dState, false);
      let dt: Float64Array = projected.slice(0, dtRank);
      let b: Float64Array = projected.slice(dtRank, dtRank + dState);
      let c: Float64Array = projected.slice(dtRank + dState);
      if (innerNorm) {
        dt = this.rmsNorm(dt, innerNorm.dt, `${name}.dt_norm`);
        b = this.rmsNorm(b, innerNorm.b, `${name}.b_norm`);
        c = this.rmsNorm(c, innerNorm.c, `${name}.c_norm`);
      }
      const delta = this.linear(`${name}.dt_proj`, dt, dInner, true).map(softplus);
      const gated = new Float64Array(dInner);
      for (let i = 0; i < dInner; i++) {
        let read = skip[i]! * u[i]!;
        for (let n = 0; n < dState; n++) {
          const at = i * dState + n;
          h[at] = Math.exp(-Math.exp(aLog[at]!) * delta[i]!) * h[at]! + delta[i]! * b[n]! * u[i]!;
          read += h[at]! * c[n]!;
        }
        gated[i] = read * silu(row[dInner + i]!);
      }
      return this.linear(`${name}.out_proj`, gated, this.layout.dModel, projBias);
    });
    const lastInputs = new Float64Array(dInner * (dConv - 1));
    for (let i = 0; i < dInner; i++) for (let k = 0; k < dConv - 1; k++) lastInputs[i * (dConv - 1) + k] = both[both.length - dConv + 1 + k]?.[i] ?? 0;
    this.state.set(`${layer}.conv_state`, lastInputs);
    this.state.set(`${layer}.ssm_state`, h);
    return y;
  }

  /** down(silu(gate(x)) ⊙ up(x)) (arXiv 2002.05202) */
  mlp({ dFf, bias }: Pick<Mlp, "dFf" | "bias">, name: string, x: Float64Array): Float64Array {
    const gate = this.linear(`${name}.gate_proj`, x, dFf, bias);
    const up = this.linear(`${name}.up_proj`, x, dFf, bias);
    return this.linear(`${name}.down_proj`, gate.map((g, i) => silu(g) * up[i]!), x.length, bias);
  }

  /** Σ over the chosen experts of weight · expert(x); the weights as transformers' Jamba and Mixtral routers give them. */
  moe({ nExperts, topK, dFf, router }: Moe, name: string, x: Float64Array): Float64Array {
    const logits = [...this.linear(`${name}.router`, x, nExperts, false)];
    const ranked = logits.map((_, e) => e).sort((a, b) => logits[b]! - logits[a]!);
    if (topK < nExperts) this.routingMargin = Math.min(this.routingMargin, logits[ranked[topK - 1]!]! - logits[ranked[topK]!]!);
    const chosen = ranked.slice(0, topK);
    let shares: readonly number[];
    if (router.kind === "top-k-then-softmax") shares = softmax(chosen.map((e) => logits[e]!));
    else {
      const probabilities = softmax(logits);
      shares = chosen.map((e) => probabilities[e]!);
      if (router.renormalise) {
        const total = shares.reduce((a, b) => a + b, 0);
        shares = shares.map((share) => share / total);
      }
    }
    return chosen
      .map((e, i) => this.mlp({ dFf, bias: false }, `${name}.experts.${e}`, x).map((v) => v * shares[i]!))
      .reduce(add, new Float64Array(x.length));
  }
}

/**
 * Rotary embedding (arXiv 2104.09864) as Llama pairs channels: p with p + P/2 (transformers `rotate_half`).
 * The scalings are those of transformers' `modeling_rope_utils.py`.
 */
function rotateHeads(heads: Float64Array, headDim: number, position: Rope, at: number): Float64Array {
  const half = headDim / 2;
  const turned = new Float64Array(heads.length);
  for (let start = 0; start < heads.length; start += headDim)
    for (let p = 0; p < half; p++) {
      const angle = at * frequency(position, p, headDim);
      const cos = Math.cos(angle) * amplitude(position);
      const sin = Math.sin(angle) * amplitude(position);
      const [a, b] = [heads[start + p]!, heads[start + p + half]!];
      turned[start + p] = a * cos - b * sin;
      turned[start + p + half] = b * cos + a * sin;
    }
  return turned;
}

/** Radians per position of channel pair p. */
function frequency({ theta, scaling }: Rope, p: number, headDim: number): number {
  const plain = 1 / theta ** ((2 * p) / headDim);
  switch (scaling?.kind) {
    case undefined:
      return plain;
    case "linear":
      return plain / scaling.factor;
    case "llama3": {
      const wavelength = (2 * Math.PI) / plain;
      const [shortest, longest] = [scaling.originalContext / scaling.highFreqFactor, scaling.originalContext / scaling.lowFreqFactor];
      if (wavelength < shortest) return plain;
      if (wavelength > longest) return plain / scaling.factor;
      const smooth = (scaling.originalContext / wavelength - scaling.lowFreqFactor) / (scaling.highFreqFactor - scaling.lowFreqFactor);
      return ((1 - smooth) * plain) / scaling.factor + smooth * plain;
    }
    case "yarn": {
      // arXiv 2309.00071, eq. 17-23: pairs that turn more than betaFast times in the old context are kept, fewer than betaSlow interpolated.
      const pairOf = (turns: number) => (headDim * Math.log(scaling.originalContext / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
      const low = Math.max(Math.floor(pairOf(scaling.betaFast)), 0);
      let high = Math.min(Math.ceil(pairOf(scaling.betaSlow)), headDim - 1);
      if (low === high) high += 0.001;
      const interpolated = Math.min(1, Math.max(0, (p - low) / (high - low)));
      return (plain / scaling.factor) * interpolated + plain * (1 - interpolated);
    }
  }
}

/** YaRN's factor on cos and sin, √(1/t) in the paper. */
function amplitude({ scaling }: Rope): number {
  if (scaling?.kind !== "yarn") return 1;
  return scaling.attentionFactor ?? (scaling.factor > 1 ? 0.1 * Math.log(scaling.factor) + 1 : 1);
}

/** W x, W row-major with x.length columns. */
function multiply(w: Float64Array, x: Float64Array): Float64Array {
  const y = new Float64Array(w.length / x.length);
  for (let o = 0; o < y.length; o++) {
    let total = 0;
    for (let i = 0; i < x.length; i++) total += w[o * x.length + i]! * x[i]!;
    y[o] = total;
  }
  return y;
}

const add = (a: Float64Array, b: Float64Array): Float64Array => a.map((v, i) => v + b[i]!);
const sum = (a: Sequence, b: Sequence): Sequence => a.map((row, t) => add(row, b[t]!));
const silu = (x: number): number => x / (1 + Math.exp(-x));
const softplus = (x: number): number => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

function softmax(logits: readonly number[]): number[] {
  const largest = Math.max(...logits);
  const powers = logits.map((v) => Math.exp(v - largest));
  const total = powers.reduce((a, b) => a + b, 0);
  return powers.map((v) => v / total);
}

/** T × [G·P] → [G, T, P] */
function headsFirst(rows: Sequence, heads: number, headDim: number): Float64Array {
  const out = new Float64Array(heads * rows.length * headDim);
  for (let g = 0; g < heads; g++) rows.forEach((row, t) => out.set(row.subarray(g * headDim, (g + 1) * headDim), (g * rows.length + t) * headDim));
  return out;
}
