import { fail } from "../diagnostics.js";
import { planDiagnostics } from "./diagnostics.js";

const units: Readonly<Record<string, number>> = { B: 1, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

/** Extents of tensors stay below this. */
export const mostTokens = 2 ** 31 - 1;

/**
 * "80GB" → 80·10⁹, "80GiB" → 80·2³⁰.
 * @throws LayerweaveError `plan/bad-bytes`
 */
export function parseBytes(text: string, option: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?) ?([KMGT]i?B|B)$/.exec(text.trim()) ?? [];
  const bytes = Math.round(Number(number) * (units[unit ?? ""] ?? Number.NaN));
  if (!Number.isSafeInteger(bytes) || bytes < 1) fail(planDiagnostics["bad-bytes"], { option, found: text });
  return bytes;
}

/**
 * "256K" → 262144, "1M" → 1048576, "3000" → 3000.
 * @throws LayerweaveError `plan/bad-count`
 */
export function parseCount(text: string, option: string): number {
  const [, number, unit] = /^(\d+(?:\.\d+)?)([KM]?)$/.exec(text.trim()) ?? [];
  return checkedCount(number === undefined ? Number.NaN : Number(number) * { "": 1, K: 2 ** 10, M: 2 ** 20 }[unit as "" | "K" | "M"], option, text);
}

/** @throws LayerweaveError `plan/bad-count` */
export function checkedCount(count: number, option: string, text = String(count)): number {
  if (!Number.isInteger(count) || count < 1 || count > mostTokens) fail(planDiagnostics["bad-count"], { option, found: text, most: mostTokens });
  return count;
}

/** "64.2 GB": powers of ten, three digits or more. */
export function formatBytes(bytes: number): string {
  return scaled(bytes, 1000, ["B", "KB", "MB", "GB", "TB"]);
}

/** "59.8 GiB": powers of two. */
export function formatBinaryBytes(bytes: number): string {
  return scaled(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

function scaled(bytes: number, base: number, names: readonly string[]): string {
  let power = 0;
  while (power + 1 < names.length && Math.abs(bytes) >= base ** (power + 1)) power++;
  const value = bytes / base ** power;
  return `${power === 0 ? value : value.toFixed(Math.abs(value) < 10 ? 2 : 1)} ${names[power]}`;
}

/** 262144 → "256K", 3000 → "3000". */
export function formatCount(count: number): string {
  if (count >= 2 ** 20 && count % 2 ** 20 === 0) return `${count / 2 ** 20}M`;
  return count >= 2 ** 10 && count % 2 ** 10 === 0 ? `${count / 2 ** 10}K` : `${count}`;
}
