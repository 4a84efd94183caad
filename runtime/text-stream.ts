/** Turns a token id into the bytes it stands for. */
export type TokenBytes = (id: number) => Uint8Array;

export interface TextStreamOptions {
  /** Text ends before the first of these to be complete. */
  readonly stop?: readonly string[];
  /** A single space at the very start of the text is dropped (SentencePiece puts one before the first word). */
  readonly dropLeadingSpace?: boolean;
}

/**
 * Turns tokens into text piece by piece. A piece is final: it never ends inside a UTF-8 character, and text that could
 * still become a stop string is held back. Bytes that are no UTF-8 become U+FFFD as the WHATWG decoder has it.
 */
export class TextStream {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #stop: readonly string[];
  #dropSpace: boolean;
  #held = "";
  #stoppedBy: string | undefined;

  constructor(
    private readonly bytesOf: TokenBytes,
    options: TextStreamOptions = {},
  ) {
    this.#stop = options.stop ?? [];
    this.#dropSpace = options.dropLeadingSpace ?? false;
  }

  /** The stop string that ended the text, if one did. */
  get stoppedBy(): string | undefined {
    return this.#stoppedBy;
  }

  /** The text that became certain with this token. */
  push(id: number): string {
    return this.#emit(this.#decoder.decode(this.bytesOf(id), { stream: true }), false);
  }

  /** The text still held back once no token follows; an unfinished character becomes U+FFFD. */
  flush(): string {
    return this.#emit(this.#decoder.decode(), true);
  }

  #emit(text: string, last: boolean): string {
    if (this.#stoppedBy !== undefined) return "";
    if (this.#dropSpace && text.length > 0) {
      this.#dropSpace = false;
      if (text.startsWith(" ")) text = text.slice(1);
    }
    this.#held += text;
    // The first to end, not the first to start, so that it doesn't matter how the text was cut into tokens.
    const [first] = this.#stop
      .map((stop) => ({ stop, at: this.#held.indexOf(stop) }))
      .filter(({ at }) => at >= 0)
      .sort((a, b) => a.at + a.stop.length - (b.at + b.stop.length) || a.at - b.at);
    if (first) this.#stoppedBy = first.stop;
    const certain = first ? first.at : last ? this.#held.length : this.#held.length - this.#openLength();
    const piece = this.#held.slice(0, certain);
    this.#held = this.#held.slice(certain);
    return piece;
  }

  /** Length of the longest end of the held text that a stop string begins with. */
  #openLength(): number {
    const lengths = this.#stop.map((stop) => {
      let length = Math.min(stop.length - 1, this.#held.length);
      while (length > 0 && !this.#held.endsWith(stop.slice(0, length))) length--;
      return length;
    });
    return Math.max(0, ...lengths);
  }
}
