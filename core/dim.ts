import { invariant } from "./diagnostics.js";

/**
 * One extent of a tensor: a number, or a polynomial over the symbols below, written canonically (`"B*T"`, `"T + 3"`).
 *
 * B batch · T tokens of this run · S capacity of the KV cache · L positions that get logits. In comments also
 * D dModel · I dInner · N dState · K dConv · R dtRank · H heads · G KV heads · P headDim · F dFf · E experts · V vocabulary.
 */
export type Dim = number | string;
export type Shape = readonly Dim[];

type Polynomial = ReadonlyMap<string, number>;

/** A graph has thousands of dimensions and few different ones. */
const parsed = new Map<string, Polynomial>();

function parse(dim: Dim): Polynomial {
  if (typeof dim === "number") return new Map(dim === 0 ? [] : [["", dim]]);
  const known = parsed.get(dim);
  if (known) return known;
  const terms = new Map<string, number>();
  for (const term of dim.split(" + ")) {
    const factors = term.split("*");
    const coefficient = Number(factors[0]);
    const hasCoefficient = !Number.isNaN(coefficient);
    const key = (hasCoefficient ? factors.slice(1) : factors).sort().join("*");
    terms.set(key, (terms.get(key) ?? 0) + (hasCoefficient ? coefficient : 1));
  }
  parsed.set(dim, terms);
  return terms;
}

function print(polynomial: Polynomial): Dim {
  const terms = [...polynomial].filter(([, c]) => c !== 0).sort(([a], [b]) => (a === b ? 0 : a === "" ? 1 : b === "" ? -1 : a < b ? -1 : 1));
  if (terms.length === 0) return 0;
  if (terms.length === 1 && terms[0]?.[0] === "") return terms[0][1];
  return terms.map(([key, c]) => (key === "" ? `${c}` : c === 1 ? key : `${c}*${key}`)).join(" + ");
}

/** The terms of a dimension: each a coefficient and the symbols it is multiplied by, sorted. */
export function termsOf(dim: Dim): readonly { readonly coefficient: number; readonly symbols: readonly string[] }[] {
  return [...parse(dim)].map(([key, coefficient]) => ({ coefficient, symbols: key ? key.split("*") : [] }));
}

export function addDims(a: Dim, b: Dim): Dim {
  if (typeof a === "number" && typeof b === "number") return a + b;
  const sum = new Map(parse(a));
  for (const [key, c] of parse(b)) sum.set(key, (sum.get(key) ?? 0) + c);
  return print(sum);
}

export function mulDims(...dims: readonly Dim[]): Dim {
  const number = dims.reduce((product: number, dim) => (typeof dim === "number" ? product * dim : product), 1);
  const symbolic = dims.filter((dim) => typeof dim === "string");
  if (symbolic.length === 0) return number;
  return print(
    symbolic.map(parse).reduce((product, factor) => {
      const next = new Map<string, number>();
      for (const [a, ca] of product)
        for (const [b, cb] of factor) {
          const key = [...(a ? a.split("*") : []), ...(b ? b.split("*") : [])].sort().join("*");
          next.set(key, (next.get(key) ?? 0) + ca * cb);
        }
      return next;
    }, parse(number)),
  );
}

export function subDims(a: Dim, b: Dim): Dim {
  return addDims(a, mulDims(-1, b));
}

/** a / b where it divides without remainder term by term; undefined otherwise. */
export function divideDims(a: Dim, b: Dim): Dim | undefined {
  const divisor = [...parse(b)];
  const [first] = divisor;
  if (divisor.length !== 1 || !first) return undefined;
  const quotient = new Map<string, number>();
  for (const [key, c] of parse(a)) {
    const left = key ? key.split("*") : [];
    for (const symbol of first[0] ? first[0].split("*") : []) {
      const at = left.indexOf(symbol);
      if (at < 0) return undefined;
      left.splice(at, 1);
    }
    if (c % first[1] !== 0) return undefined;
    quotient.set(left.join("*"), c / first[1]);
  }
  return print(quotient);
}

/** The value of a dimension once its symbols are known. */
export function evaluateDim(dim: Dim, symbols: Readonly<Record<string, number>>): number {
  let total = 0;
  for (const [key, c] of parse(dim))
    total +=
      c *
      (key ? key.split("*") : []).reduce((product, symbol) => {
        const value = symbols[symbol];
        invariant(value !== undefined, `no value for dimension ${symbol}`);
        return product * value;
      }, 1);
  return total;
}

export function elementCount(shape: Shape): Dim {
  return mulDims(...shape);
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}

export function printShape(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}
