const binaryUnits = ["B", "KiB", "MiB", "GiB", "TiB"] as const;

/** Bytes in powers of 1024, with the unit that says so: `1.25 GiB`. */
export function formatBytes(bytes: number): string {
  const unit = Math.min(binaryUnits.length - 1, bytes < 1 ? 0 : Math.floor(Math.log2(bytes) / 10));
  return unit === 0 ? `${bytes} B` : `${significant(bytes / 1024 ** unit)} ${binaryUnits[unit]}`;
}

const decimalUnits = ["", "K", "M", "B", "T"] as const;

/** A count in powers of 1000, as parameter counts are quoted: `51.57B`. */
export function formatCount(count: number): string {
  const unit = Math.min(decimalUnits.length - 1, count < 1000 ? 0 : Math.floor(Math.log10(count) / 3));
  return unit === 0 ? String(count) : `${(count / 1000 ** unit).toFixed(2)}${decimalUnits[unit]}`;
}

/** All digits, grouped: `65,536`. */
export const formatInteger = (value: number): string => value.toLocaleString("en-US", { maximumFractionDigits: 0 });

const significant = (value: number): string => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

/** Columns of text, padded to the widest cell of each; those named in `right` are aligned right. */
export function formatTable(rows: readonly (readonly string[])[], { right = [], indent = "" }: { readonly right?: readonly number[]; readonly indent?: string } = {}): string {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)));
  return rows
    .map((row) => (indent + row.map((cell, i) => (right.includes(i) ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0))).join("  ")).trimEnd())
    .map((line) => `${line}\n`)
    .join("");
}

/** Text broken into lines of at most `width` characters at spaces. */
export function wrap(text: string, width = 100): string {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line].join("\n");
}
