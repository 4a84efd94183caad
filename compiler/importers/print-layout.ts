import type { CodeBlockWriter } from "ts-morph";
import type { ChannelMixerKind, ChannelMixerSpec } from "../../dsl/channel-mixers/index.js";
import type { Router } from "../../dsl/channel-mixers/moe.js";
import type { MixerKind, MixerSpec } from "../../dsl/mixers/index.js";
import type { Layers, LayerSpec, ModelSpec, Plan, StackItem } from "../../dsl/model.js";
import type { RmsNormSpec } from "../../dsl/norms.js";
import type { Position, RopeScaling } from "../../dsl/positions.js";

/** An expression to print. Fields that are undefined are left out. */
type Expression =
  | { readonly text: string }
  | { readonly call: string; readonly arguments: readonly Expression[] }
  | { readonly list: readonly Expression[] }
  | { readonly fields: readonly (readonly [string, Expression])[] };

const widest = 120;
const indent = 2;

/** A model as the TypeScript file that a person would write for it: imports, `export default model({ … })`, defaults left out. */
export async function printLayoutFile(spec: ModelSpec): Promise<string> {
  // Loaded only here: it brings the TypeScript compiler along.
  const { CodeBlockWriter } = await import("ts-morph");
  const expression = modelExpression(spec);
  const writer = new CodeBlockWriter({ indentNumberOfSpaces: indent, useTabs: false, newLine: "\n" });
  const names = [...new Set(calls(expression))].sort();
  const oneLine = `import { ${names.join(", ")} } from "layerweave";`;
  if (oneLine.length <= widest) writer.writeLine(oneLine);
  else writer.write("import ").inlineBlock(() => names.forEach((name) => writer.writeLine(`${name},`))).write(' from "layerweave";').newLine();
  writer.blankLine().write("export default ");
  write(writer, expression, 1);
  return `${writer.write(";").toString()}\n`;
}

function modelExpression(spec: ModelSpec): Expression {
  return call("model", {
    name: string(spec.name),
    vocabSize: number(spec.vocabSize),
    dModel: number(spec.dModel),
    contextLength: optional(spec.contextLength, number),
    norm: norm(spec.norm),
    finalNorm: optional(spec.finalNorm, norm),
    tieEmbeddings: unless(spec.tieEmbeddings, false),
    ...("layers" in spec ? { layers: layers(spec.layers) } : { blocks: number(spec.blocks), block: stackItem(spec.block) }),
    overrides: optional(spec.overrides, (overrides) => fields(Object.fromEntries(Object.entries(overrides).map(([index, override]) => [index, fields(halves(override))])))),
  });
}

const layers = (value: Layers): Expression => ("kind" in value ? stackItem(value) : { list: value.map(stackItem) });

const halves = ({ mixer, channelMixer, norm: own }: Pick<LayerSpec, "mixer" | "channelMixer" | "norm">) => ({
  mixer: optional(mixer, mixerExpression),
  channelMixer: optional(channelMixer, channelMixerExpression),
  norm: optional(own, norm),
});

function stackItem(item: StackItem): Expression {
  switch (item.kind) {
    case "layer":
      return call("layer", halves(item));
    case "repeat":
      return { call: "repeat", arguments: [number(item.times), stackItem(item.of)] };
    case "pattern":
      return { call: "pattern", arguments: [string(item.letters), fields(Object.fromEntries(Object.entries(item.legend).map(([letter, meaning]) => [letter, meaningExpression(meaning)])))] };
    case "block":
      return "mixer" in item
        ? call("block", {
            layers: number(item.layers),
            mixer: plan(item.mixer, mixerExpression),
            channelMixer: optional(item.channelMixer, (value) => plan<ChannelMixerSpec>(value, channelMixerExpression)),
            norm: optional(item.norm, norm),
          })
        : call("block", { layers: layers(item.layers) });
  }
}

function plan<S extends MixerSpec | ChannelMixerSpec>(value: Plan<S>, print: (spec: S) => Expression): Expression {
  if (value.kind === "every")
    return {
      call: "every",
      arguments: [number(value.period), print(value.spec as S), fields({ offset: unless(value.offset, 0), otherwise: plan<S>(value.otherwise as Plan<S>, print) })],
    };
  if (value.kind === "ratio") {
    const counts = Object.fromEntries(Object.entries(value.counts).map(([kind, count]) => [kind, number(count)]));
    const mixers = Object.fromEntries(Object.entries(value.mixers).map(([kind, mixer]) => [kind, mixerExpression(mixer)]));
    const at = value.at.length === 1 ? number(value.at[0] as number) : { list: value.at.map(number) };
    return { call: "ratio", arguments: [fields(counts), fields({ at, ...mixers })] };
  }
  return print(value as S);
}

/** How each kind is written; a new kind adds a function. */
const mixerPrinters: { readonly [K in MixerKind]: (spec: Extract<MixerSpec, { kind: K }>) => Expression } = {
  attention: ({ nHeads, nKvHeads, headDim, position: where, window, qkvBias, outBias }) =>
    call("attention", {
      nHeads: number(nHeads),
      nKvHeads: optional(nKvHeads, number),
      headDim: optional(headDim, number),
      position: position(where),
      window: optional(window, number),
      qkvBias: unless(qkvBias, false),
      outBias: unless(outBias, false),
    }),
  mamba: ({ dState, dConv, expand, dtRank, innerNorm, convBias, projBias }) =>
    call("mamba", {
      dState: number(dState),
      dConv: number(dConv),
      expand: number(expand),
      dtRank: unless(dtRank, "auto"),
      innerNorm: optional(innerNorm, (inner) => ("kind" in inner ? norm(inner) : fields({ dt: norm(inner.dt), b: norm(inner.b), c: norm(inner.c) }))),
      convBias: unless(convBias, true),
      projBias: unless(projBias, false),
    }),
};

const channelMixerPrinters: { readonly [K in ChannelMixerKind]: (spec: Extract<ChannelMixerSpec, { kind: K }>) => Expression } = {
  mlp: ({ dFf, bias }) => call("mlp", { dFf: number(dFf), bias: unless(bias, false) }),
  moe: ({ nExperts, topK, dFf, router: route }) => call("moe", { nExperts: number(nExperts), topK: number(topK), dFf: number(dFf), router: router(route) }),
};

function mixerExpression(spec: MixerSpec): Expression {
  const print = mixerPrinters[spec.kind] as (spec: MixerSpec) => Expression;
  return print(spec);
}

function channelMixerExpression(spec: ChannelMixerSpec): Expression {
  const print = channelMixerPrinters[spec.kind] as (spec: ChannelMixerSpec) => Expression;
  return print(spec);
}

function meaningExpression(meaning: MixerSpec | ChannelMixerSpec | LayerSpec): Expression {
  if (meaning.kind === "layer") return stackItem(meaning);
  return meaning.kind in mixerPrinters ? mixerExpression(meaning as MixerSpec) : channelMixerExpression(meaning as ChannelMixerSpec);
}

/** undefined for the default, Jamba's. */
function router(value: Router): Expression | undefined {
  if (value.kind === "top-k-then-softmax") return { call: "topKThenSoftmax", arguments: [] };
  return value.renormalise ? call("softmaxThenTopK", { renormalise: literal(true) }) : undefined;
}

function position(value: Position): Expression {
  return value.kind === "none" ? { call: "none", arguments: [] } : call("rope", { theta: unless(value.theta, 10_000), scaling: optional(value.scaling, scaling) });
}

function scaling(value: RopeScaling): Expression {
  switch (value.kind) {
    case "linear":
      return call("linearScaling", { factor: number(value.factor) });
    case "llama3":
      return call("llama3Scaling", {
        factor: number(value.factor),
        lowFreqFactor: number(value.lowFreqFactor),
        highFreqFactor: number(value.highFreqFactor),
        originalContext: number(value.originalContext),
      });
    case "yarn":
      return call("yarnScaling", {
        factor: number(value.factor),
        originalContext: number(value.originalContext),
        betaFast: unless(value.betaFast, 32),
        betaSlow: unless(value.betaSlow, 1),
        attentionFactor: optional(value.attentionFactor, number),
      });
  }
}

const norm = ({ eps, weight }: RmsNormSpec): Expression => call("rmsNorm", { eps: optional(eps, number), weight: unless(weight, true) });

type Fields = Readonly<Record<string, Expression | undefined>>;

const fields = (named: Fields): Expression => ({ fields: Object.entries(named).filter((entry): entry is [string, Expression] => entry[1] !== undefined) });

/** A call with one object of options; `f()` when all are defaults. */
function call(name: string, options: Fields): Expression {
  const given = fields(options);
  return { call: name, arguments: "fields" in given && given.fields.length === 0 ? [] : [given] };
}

const optional = <T>(value: T | undefined, print: (value: T) => Expression): Expression | undefined => (value === undefined ? undefined : print(value));
const unless = <T extends string | number | boolean>(value: T, usual: T): Expression | undefined => (value === usual ? undefined : literal(value));
const literal = (value: string | number | boolean): Expression => (typeof value === "number" ? number(value) : { text: JSON.stringify(value) });
const string = (value: string): Expression => ({ text: JSON.stringify(value) });

/** 65_536, 0.5, 1e-6. */
function number(value: number): Expression {
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return { text: value < 10_000 ? String(value) : String(value).replace(/\B(?=(\d{3})+$)/g, "_") };
  return { text: Math.abs(value) < 1e-3 ? value.toExponential() : String(value) };
}

function calls(expression: Expression): readonly string[] {
  if ("call" in expression) return [expression.call, ...expression.arguments.flatMap(calls)];
  if ("list" in expression) return expression.list.flatMap(calls);
  if ("fields" in expression) return expression.fields.flatMap(([, value]) => calls(value));
  return [];
}

const key = (name: string): string => (/^(?:[A-Za-z_$][\w$]*|\d+)$/.test(name) ? name : JSON.stringify(name));

function flat(expression: Expression): string {
  if ("text" in expression) return expression.text;
  if ("call" in expression) return `${expression.call}(${expression.arguments.map(flat).join(", ")})`;
  if ("list" in expression) return `[${expression.list.map(flat).join(", ")}]`;
  return `{ ${expression.fields.map(([name, value]) => `${key(name)}: ${flat(value)}`).join(", ")} }`;
}

/** Writes on one line what fits there beside `after` more characters; otherwise one field or element a line. */
function write(writer: CodeBlockWriter, expression: Expression, after: number): void {
  const line = flat(expression);
  const root = "call" in expression && expression.call === "model";
  if ("text" in expression || (!root && column(writer) + line.length + after <= widest)) writer.write(line);
  else if ("call" in expression) {
    writer.write(`${expression.call}(`);
    expression.arguments.forEach((argument, i) => {
      if (i > 0) writer.write(", ");
      const last = i === expression.arguments.length - 1;
      // Options in last place open on this line and close it; what stands before them breaks only if it must.
      if (last && ("fields" in argument || "list" in argument)) broken(writer, argument);
      else write(writer, argument, 3);
    });
    writer.write(")");
  } else broken(writer, expression);
}

function broken(writer: CodeBlockWriter, expression: Extract<Expression, { list: unknown } | { fields: unknown }>): void {
  const [open, close] = "list" in expression ? ["[", "]"] : ["{", "}"];
  writer.write(open).newLine();
  writer.indent(() => {
    if ("list" in expression)
      for (const element of expression.list) {
        write(writer, element, 1);
        writer.write(",").newLine();
      }
    else
      for (const [name, value] of expression.fields) {
        writer.write(`${key(name)}: `);
        write(writer, value, 1);
        writer.write(",").newLine();
      }
  });
  writer.write(close);
}

/** Where the next character goes. */
function column(writer: CodeBlockWriter): number {
  const text = writer.toString();
  const start = text.lastIndexOf("\n") + 1;
  // The writer indents a line when it first writes to it.
  return start === text.length ? writer.getIndentationLevel() * indent : text.length - start;
}
