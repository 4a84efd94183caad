/** Maps values to places along an axis. */
export type Scale = (value: number) => number;

type Range = readonly [from: number, to: number];

export function linearScale([low, high]: Range, [from, to]: Range): Scale {
  const factor = high === low ? 0 : (to - from) / (high - low);
  return (value) => from + (value - low) * factor;
}

export function logScale([low, high]: Range, range: Range): Scale {
  const scale = linearScale([Math.log(low), Math.log(high)], range);
  return (value) => scale(Math.log(value));
}

/** Round values from 0 to `high`, about `count` of them. */
export function linearTicks(high: number, count: number): readonly number[] {
  const rough = high / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

/** Round values for a logarithmic axis: the narrower the range, the more of them to each power of ten. */
export function decimalTicks([low, high]: Range): readonly number[] {
  const powers = Array.from({ length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => 10 ** (Math.floor(Math.log10(low)) + i));
  const steps = high / low > 300 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  return powers.flatMap((power) => steps.map((step) => Number((step * power).toPrecision(12)))).filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
}

/** Powers of `base` within a range. */
export function powersWithin([low, high]: Range, base: number): readonly number[] {
  const powers: number[] = [];
  for (let value = 1; value <= high; value *= base) if (value >= low) powers.push(value);
  return powers;
}
