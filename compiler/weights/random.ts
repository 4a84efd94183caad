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
  readonly shape: readonly number[];
  readonly initializer: Initializer;
}

/**
 * Fills `values` with the elements of a tensor from index `first` on. They depend on the seed, the tensor's name, shape and
 * initializer only: not on the machine, the engine, other tensors, or on how the tensor is cut into pieces.
 */
export function initialize({ name, shape, initializer }: InitializedTensor, seed: number, values: Float32Array, first: number): void {
  filler(initializer, shape.at(-1) ?? 1, `${seed}:${name}`)(values, first);
}

/** Writes the elements of a tensor from index `first` on. */
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

/** Elements that are drawn from one state of the generator: any of a tensor's can be had after at most as many draws. */
const streamElements = 1 << 14;

/** Draws before the first that counts: the seed words are correlated until they have passed through the generator a few times. */
const warmUp = 16;

/** 24 bits of each output of the generator. The streams of a tensor have the same seed, and their number added to its counter. */
function uniform(std: number, key: string): Fill {
  const seed = seedWords(key);
  // One multiplication of a 24-bit integer: exact in double, rounded once, and never up to the bound itself.
  const scale = Math.fround(std * sqrt3) / 0x800000;
  const passed = new Int32Array(warmUp + streamElements);
  return (values, first) => {
    for (let at = 0; at < values.length; ) {
      const before = (first + at) % streamElements;
      const part = values.subarray(at, at + streamElements - before);
      const integers = new Int32Array(part.buffer, part.byteOffset, part.length);
      const state = seed.slice();
      state[3] = (state[3] as number) + Math.floor((first + at) / streamElements);
      draw(state, passed.subarray(0, warmUp + before));
      draw(state, integers);
      scaleIntegers(integers, part, scale);
      at += part.length;
    }
  };
}

/** Chris Doty-Humphrey's sfc32 (PractRand): the next outputs, as signed integers of 24 bits. `state` moves on. */
function draw(state: Int32Array, out: Int32Array): void {
  // Local int32 variables, and integers alone: V8 runs this loop several times slower otherwise.
  let w = (state[0] as number) | 0;
  let x = (state[1] as number) | 0;
  let y = (state[2] as number) | 0;
  let z = (state[3] as number) | 0;
  for (let i = 0; i < out.length; i++) {
    const sum = (((w + x) | 0) + z) | 0;
    z = (z + 1) | 0;
    w = x ^ (x >>> 9);
    x = (y + (y << 3)) | 0;
    y = (((y << 21) | (y >>> 11)) + sum) | 0;
    out[i] = sum >> 8;
  }
  state.set([w, x, y, z]);
}

/** Four at a time, since half of the time would go into the loop; `values` may be the same memory. */
function scaleIntegers(integers: Int32Array, values: Float32Array, scale: number): void {
  const whole = values.length & ~3;
  for (let i = 0; i < whole; i += 4) {
    values[i] = (integers[i] as number) * scale;
    values[i + 1] = (integers[i + 1] as number) * scale;
    values[i + 2] = (integers[i + 2] as number) * scale;
    values[i + 3] = (integers[i + 3] as number) * scale;
  }
  for (let i = whole; i < values.length; i++) values[i] = (integers[i] as number) * scale;
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
