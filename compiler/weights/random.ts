import type { StorageDtype } from "../../core/dtype.js";
import { convertElements } from "./convert.js";

/** How a weight that no checkpoint provides is filled. */
export type Initializer =
  /** Uniform in [-a, a) with a = std·√3, which has that standard deviation. */
  | { readonly kind: "uniform"; readonly std: number }
  | { readonly kind: "constant"; readonly value: number }
  /** A_log[d, n] = ln(n + 1), n along the last axis: the S4D-real initialisation of Mamba (arXiv:2312.00752, §3.6). */
  | { readonly kind: "s4d" }
  /** softplus⁻¹(dt), dt spread evenly in log space from min to max along the last axis (same paper, §3.6, which draws it at random). */
  | { readonly kind: "dt-bias"; readonly min: number; readonly max: number };

/** A tensor to be filled. */
export interface InitializedTensor {
  readonly name: string;
  readonly dtype: StorageDtype;
  readonly shape: readonly number[];
  readonly initializer: Initializer;
}

/** 4 MiB of float32. */
const chunkElements = 1 << 20;

/**
 * The bytes of a tensor, in chunks of at most 4 MiB. They depend on the seed, the tensor's name, shape and initializer only, not on
 * the machine, the engine or other tensors; another dtype gives the same float32 values rounded to nearest even.
 */
export function* initialize({ name, dtype, shape, initializer }: InitializedTensor, seed: number): Generator<Uint8Array, void, undefined> {
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const fill = filler(initializer, shape.at(-1) ?? 1, `${seed}:${name}`);
  for (let first = 0; first < elements; first += chunkElements) {
    const values = new Float32Array(Math.min(chunkElements, elements - first));
    fill(values, first);
    yield convertElements(new Uint8Array(values.buffer), "float32", dtype);
  }
}

/** Writes the elements of a tensor from index `first` on; called in order. */
type Fill = (values: Float32Array, first: number) => void;

function filler(initializer: Initializer, lastAxis: number, key: string): Fill {
  switch (initializer.kind) {
    case "uniform":
      return uniform(initializer.std, key);
    case "constant":
      return (values) => values.fill(initializer.value);
    case "s4d":
      return repeated(lastAxis, (n) => naturalLog(n + 1));
    case "dt-bias": {
      const low = naturalLog(initializer.min);
      const step = (naturalLog(initializer.max) - low) / lastAxis;
      return repeated(lastAxis, (channel) => naturalLog(exponential(exponential(low + (channel + 0.5) * step)) - 1));
    }
  }
}

function repeated(period: number, valueAt: (index: number) => number): Fill {
  const values = Float32Array.from({ length: period }, (_, index) => valueAt(index));
  return (out, first) => {
    for (let i = 0, at = first % period; i < out.length; i++) {
      out[i] = values[at] as number;
      if (++at === period) at = 0;
    }
  };
}

const sqrt3 = 1.7320508075688772;

/** Chris Doty-Humphrey's sfc32 (PractRand), 24 bits of each output. */
function uniform(std: number, key: string): Fill {
  const state = seedWords(key);
  const next = (values: Float32Array, scale: number): void => {
    // Local int32 variables: V8 runs this loop four times slower over captured or untyped ones.
    let w = (state[0] as number) | 0;
    let x = (state[1] as number) | 0;
    let y = (state[2] as number) | 0;
    let z = (state[3] as number) | 0;
    const count = values.length;
    for (let i = 0; i < count; i++) {
      const sum = (((w + x) | 0) + z) | 0;
      z = (z + 1) | 0;
      w = x ^ (x >>> 9);
      x = (y + (y << 3)) | 0;
      y = (((y << 21) | (y >>> 11)) + sum) | 0;
      values[i] = (sum >> 8) * scale;
    }
    state.set([w, x, y, z]);
  };
  // The seed words are correlated until they have passed through the generator a few times.
  next(new Float32Array(16), 0);
  // One multiplication of a 24-bit integer: exact in double, rounded once, and never up to the bound itself.
  const scale = Math.fround(std * sqrt3) / 0x800000;
  return (values) => next(values, scale);
}

/** Four 32-bit words from a string: FNV-1a over its UTF-8 bytes, drawn out with MurmurHash3's finaliser. */
function seedWords(key: string): Int32Array {
  let hash = 0x811c9dc5 | 0;
  for (const byte of new TextEncoder().encode(key)) hash = Math.imul(hash ^ byte, 0x01000193);
  return Int32Array.from({ length: 4 }, () => {
    hash = (hash + 0x9e3779b9) | 0;
    let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return mixed ^ (mixed >>> 16);
  });
}

// ECMAScript leaves the last bits of Math.log and Math.exp to the engine. These use + - * / alone, which IEEE 754 fixes, and are
// accurate to about 1e-15, far below the float32 they are rounded to.

const ln2 = 0.6931471805599453;

/** ln x = 2·artanh((x-1)/(x+1)), after x is brought near 1 by powers of two. */
function naturalLog(x: number): number {
  let exponent = 0;
  for (; x > 1.5; x /= 2) exponent++;
  for (; x < 0.75; x *= 2) exponent--;
  const ratio = (x - 1) / (x + 1);
  let series = 0;
  for (let k = 25; k > 0; k -= 2) series = series * ratio * ratio + 1 / k;
  return 2 * ratio * series + exponent * ln2;
}

/** Taylor series near 0, squared back up. */
function exponential(x: number): number {
  let squarings = 0;
  for (; x > 0.5 || x < -0.5; x /= 2) squarings++;
  let result = 1;
  for (let k = 18; k > 0; k--) result = 1 + (x / k) * result;
  for (; squarings > 0; squarings--) result *= result;
  return result;
}
