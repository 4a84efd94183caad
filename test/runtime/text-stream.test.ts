import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TextStream } from "#dist/runtime/text-stream.js";

/** Feeds `tokens`, each a run of bytes, and returns the pieces with the last held text at the end. */
function pieces(tokens: readonly Uint8Array[], stop: readonly string[] = []): { pieces: string[]; stream: TextStream } {
  const stream = new TextStream((id) => tokens[id] ?? new Uint8Array(), { stop });
  const out = tokens.map((_, id) => stream.push(id));
  return { pieces: [...out, stream.flush()], stream };
}

function splitAt(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const at = [...new Set([0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length])].sort((a, b) => a - b);
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
}

const cuts = fc.array(fc.nat(), { maxLength: 12 });
const text = fc.string({ unit: "grapheme", maxLength: 20 });

describe("TextStream", () => {
  test("any text split anywhere comes out whole, in pieces that end between characters", () => {
    fc.assert(
      fc.property(text, cuts, (whole, at) => {
        const { pieces: out } = pieces(splitAt(new TextEncoder().encode(whole), at));
        expect(out.join("")).toBe(whole);
        for (const piece of out) expect(piece).not.toContain("\uFFFD");
        for (const piece of out) expect(new TextDecoder().decode(new TextEncoder().encode(piece))).toBe(piece);
      }),
    );
  });

  test("any bytes split anywhere come out as the decoder has them when they are whole", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 24 }), cuts, (bytes, at) => {
        const { pieces: out } = pieces(splitAt(bytes, at));
        expect(out.join("")).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes));
      }),
      { numRuns: 2000 },
    );
  });

  test("text ends before the first stop string to be complete, however the tokens fall, and no part of it is shown", () => {
    const alphabet = fc.string({ unit: fc.constantFrom("a", "b", "é", "🙂"), maxLength: 16 });
    const stops = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "é", "🙂"), minLength: 1, maxLength: 4 }), { maxLength: 3 });
    fc.assert(
      fc.property(alphabet, stops, cuts, (whole, stop, at) => {
        const { pieces: out, stream } = pieces(splitAt(new TextEncoder().encode(whole), at), stop);
        const ends = stop.filter((s) => whole.includes(s)).map((s) => whole.indexOf(s) + s.length);
        const seen = whole.slice(0, Math.min(...ends, whole.length));
        const longest = Math.max(0, ...stop.filter((s) => seen.endsWith(s)).map((s) => s.length));
        expect(out.join("")).toBe(seen.slice(0, seen.length - longest));
        expect(stream.stoppedBy !== undefined).toBe(stop.some((s) => whole.includes(s)));
      }),
      { numRuns: 1000 },
    );
  });

  test("text that is no beginning of a stop string is shown at once", () => {
    const stream = new TextStream((id) => new TextEncoder().encode("Hello </e ok"[id] ?? ""), { stop: ["</end>"] });
    expect(Array.from("Hello </e ok", (_, id) => stream.push(id))).toEqual(["H", "e", "l", "l", "o", " ", "", "", "", "</e ", "o", "k"]);
  });

  test("one leading space is dropped on request", () => {
    const stream = new TextStream((id) => new TextEncoder().encode(["", "  a", " b"][id] ?? ""), { dropLeadingSpace: true });
    expect([stream.push(0), stream.push(1), stream.push(2)]).toEqual(["", " a", " b"]);
  });
});
