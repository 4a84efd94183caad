import { formatBytes } from "./format.js";
import type { Terminal } from "./terminal.js";

/** Shows how far a model's weights are on their way to a card. */
export function loadingStatus(terminal: Terminal, folder: string): (loaded: number, total: number) => void {
  return (loaded, total) => terminal.status(`loading ${folder}: ${formatBytes(loaded)} of ${formatBytes(total)}`);
}
