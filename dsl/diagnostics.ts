import { catalogue, define } from "../core/diagnostics.js";

export const dslDiagnostics = catalogue("dsl", {
  "not-a-model": define<{ found: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ found }) => `the layout is ${found}, not a model.`,
    help: () => "Make it with model({ … }) and export it as the default: `export default model({ … })`.",
    explain: "A layout file's default export must be what model({ … }) returns (or a function of knobs that returns one).",
  }),
  "not-a-spec": define<{ expected: string; found: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ expected, found }) => `${expected} expected, ${found} found.`,
    help: ({ expected }) => `Make it with one of the constructors: ${expected}.`,
    explain: "A part of the layout is not a value that a DSL constructor made. TypeScript reports this in the editor; it is checked again because a layout can be built from data.",
  }),
  "wrong-type": define<{ field: string; expected: string; found: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ field, expected, found }) => `${field} is ${found}; ${expected} is expected.`,
    help: ({ field, expected }) => `Give ${field} ${expected}.`,
    explain: "A field of the layout holds a value of another type. TypeScript reports this in the editor; it is checked again because a layout can be built from data.",
  }),
  "unknown-field": define<{ field: string; known: readonly string[] }>({
    severity: "error",
    exitCode: 3,
    message: ({ field }) => `there is no field ${field} here.`,
    help: ({ field, known }) => (known.length === 0 ? `Leave ${field} out: this has no fields.` : `Leave ${field} out, or use one of ${known.join(", ")}.`),
    explain: "A field that nothing reads is a spelling mistake or a wish that is not met; either way the model would not be the one that was meant.",
  }),
  "not-a-count": define<{ field: string; found: string | number }>({
    severity: "error",
    exitCode: 3,
    message: ({ field, found }) => `${field} is ${found}; it must be a whole number of at least 1.`,
    help: ({ field }) => `Give ${field} a positive whole number.`,
    explain: "Widths, counts and periods are extents of tensors: positive whole numbers below 2^31.",
  }),
  "not-a-positive-number": define<{ field: string; found: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ field, found }) => `${field} is ${found}; it must be a finite number above 0.`,
    help: ({ field }) => `Give ${field} a positive number.`,
    explain: "Epsilons, rotary bases and scaling factors are positive finite numbers.",
  }),
  "no-layers": define<Record<string, never>>({
    severity: "error",
    exitCode: 3,
    message: () => "the model has no layers.",
    help: () => "Give blocks and block, or layers.",
    explain: "A model is a stack of at least one layer.",
  }),
  "empty-layer": define<Record<string, never>>({
    severity: "error",
    exitCode: 3,
    message: () => "the layer has neither a mixer nor a channel mixer.",
    help: () => "Give it one: layer({ mixer: mamba() }), or leave the layer out.",
    explain: "A layer adds mixer(norm(x)) and channelMixer(norm(x)) to its input; with neither it would be the identity.",
  }),
  "too-many-layers": define<{ layers: number; most: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ layers, most }) => `the model has ${layers} layers; ${most} is the most that is supported.`,
    help: () => "Check blocks and repeat for a number too many.",
    explain: "The limit is there to turn a typing error in a repetition into a message instead of an exhausted memory.",
  }),
  "offset-beyond-period": define<{ offset: number; period: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ offset, period }) => `offset ${offset} is outside the period of ${period}.`,
    help: ({ period }) => `Choose an offset from 0 to ${period - 1}.`,
    explain: "every(period, spec, { offset }) puts the spec where i mod period = offset; an offset that is not below the period never matches (Hugging Face's Jamba rejects it too).",
  }),
  "ratio-at": define<{ first: string; count: number; at: readonly number[]; period: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ first, count, at, period }) => `at says ${at.length === 0 ? "no place" : `place ${at.join(", ")}`} for ${count} × ${first} in a period of ${period}.`,
    help: ({ first, count, period }) => `Name ${count} different place${count === 1 ? "" : "s"} from 0 to ${period - 1} for ${first}.`,
    explain: "ratio({ attention: 1, mamba: 7 }, { at: 4 }) makes periods of 8 layers with the first-named mixer at the places in `at`; there must be as many places as the first count says.",
  }),
  "ratio-does-not-divide": define<{ period: number; layers: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ period, layers }) => `the ratio's period of ${period} does not divide the block's ${layers} layers.`,
    help: ({ period, layers }) => `Make the block ${Math.max(1, Math.round(layers / period)) * period} layers long, or change the ratio.`,
    explain: "A ratio is only met exactly when whole periods fit into the block.",
  }),
  "unknown-letter": define<{ letter: string; letters: string; known: readonly string[] }>({
    severity: "error",
    exitCode: 3,
    message: ({ letter, letters }) => `the pattern "${letters}" uses "${letter}", which its legend does not explain.`,
    help: ({ letter, known }) => `Add "${letter}" to the legend, or use one of ${known.join(" ") || "(none)"}.`,
    explain: 'pattern("M*-E", { M: mamba(), … }) makes one layer per letter; each letter must be in the legend.',
  }),
  "override-out-of-range": define<{ index: string; layers: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ index, layers }) => `overrides names layer ${index}, but the model has layers 0 to ${layers - 1}.`,
    help: () => "Overrides are keyed by the layer's index in the whole model.",
    explain: "overrides: { 3: { mixer: … } } changes layer 3 of the whole stack, counted from 0.",
  }),
  "heads-do-not-divide": define<{ dModel: number; nHeads: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ dModel, nHeads }) => `dModel ${dModel} is not divisible by nHeads ${nHeads}.`,
    help: ({ dModel, nHeads }) => `Give headDim, or choose a number of heads that divides dModel, such as ${nearestDivisor(dModel, nHeads)}.`,
    explain: "Without headDim each head is dModel / nHeads wide, which must be a whole number.",
  }),
  "kv-heads-do-not-divide": define<{ nHeads: number; nKvHeads: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ nHeads, nKvHeads }) => `nHeads ${nHeads} is not divisible by nKvHeads ${nKvHeads}.`,
    help: ({ nHeads, nKvHeads }) => `Choose nKvHeads that divides nHeads, such as ${nearestDivisor(nHeads, nKvHeads)}.`,
    explain: "In grouped-query attention nHeads / nKvHeads query heads share a key/value head.",
  }),
  "rope-odd-head": define<{ headDim: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ headDim }) => `rotary embedding needs an even headDim, not ${headDim}.`,
    help: ({ headDim }) => `Use headDim ${headDim + 1}, or position: none().`,
    explain: "Rotary embedding turns pairs of channels, one from each half of the head.",
  }),
  "llama3-frequencies": define<{ lowFreqFactor: number; highFreqFactor: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ lowFreqFactor, highFreqFactor }) => `llama3 scaling: lowFreqFactor ${lowFreqFactor} is not below highFreqFactor ${highFreqFactor}.`,
    help: () => "Llama 3.1 uses lowFreqFactor 1 and highFreqFactor 4.",
    explain: "Between the two factors the scaling is interpolated; they bound a range that must not be empty.",
  }),
  "yarn-range": define<{ betaFast: number; betaSlow: number; theta: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ betaFast, betaSlow, theta }) => `yarn scaling needs betaFast above betaSlow and theta above 1, not ${betaFast}, ${betaSlow} and ${theta}.`,
    help: () => "The paper uses betaFast 32 and betaSlow 1, with theta 10000.",
    explain: "YaRN finds the channels that turn betaFast and betaSlow times over the original context, and interpolates between them; they must bound a range, and channels must turn at different speeds.",
  }),
  "dt-rank-too-large": define<{ dtRank: number; dInner: number; usual: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ dtRank, dInner }) => `dtRank ${dtRank} exceeds dInner ${dInner}.`,
    help: ({ usual }) => `The paper uses ceil(dModel / 16) = ${usual}: leave dtRank out, or say dtRank: "auto".`,
    explain: "dt goes through a bottleneck of dtRank channels (x_proj, then dt_proj); a rank beyond dInner is no bottleneck.",
  }),
  "expand-not-whole": define<{ expand: number; dModel: number; dInner: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ expand, dModel, dInner }) => `expand ${expand} · dModel ${dModel} = ${dInner} is not a whole number of channels.`,
    help: () => "Use a whole expand such as 2, or one whose product with dModel is whole.",
    explain: "dInner = expand · dModel is the width of the Mamba mixer's inside.",
  }),
  "conv-too-short": define<{ dConv: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ dConv }) => `dConv is ${dConv}; a convolution that mixes tokens is at least 2 wide.`,
    help: () => "Published Mamba models use dConv: 4.",
    explain: "The convolution's state holds the last dConv - 1 inputs; with dConv 1 there would be none.",
  }),
  "top-k-above-experts": define<{ topK: number; nExperts: number }>({
    severity: "error",
    exitCode: 3,
    message: ({ topK, nExperts }) => `topK ${topK} exceeds nExperts ${nExperts}.`,
    help: ({ nExperts }) => `Choose topK from 1 to ${nExperts}.`,
    explain: "Each token is sent to topK different experts.",
  }),
  "shared-experts": define<{ nSharedExperts: string }>({
    severity: "error",
    exitCode: 3,
    message: ({ nSharedExperts }) => `nSharedExperts is ${nSharedExperts}; shared experts are not supported yet.`,
    help: () => "Leave nSharedExperts out.",
    explain: "The field is reserved for experts that every token visits.",
  }),
});

/** The divisor of n nearest to the wanted one. */
function nearestDivisor(n: number, wanted: number): number {
  let best = 1;
  for (let d = 1; d <= Math.min(n, 1 << 20); d++) if (n % d === 0 && Math.abs(d - wanted) < Math.abs(best - wanted)) best = d;
  return best;
}
