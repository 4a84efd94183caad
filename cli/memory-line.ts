import type { ModelMemory } from "../runtime/index.js";
import { formatBytes } from "./format.js";

/** What a model held at most beside what was planned for it, in one line. */
export function memoryLine({ planned, measured, card }: ModelMemory): string {
  if (!measured) return `model memory: ${formatBytes(planned.total)} planned; the portable backend can't tell what was held`;
  const { arena, state, logits, total, weights } = measured.peak;
  const parts = [`weights ${formatBytes(weights)}`, `allocator ${formatBytes(arena)}`, `state ${formatBytes(state)}`, `logits ${formatBytes(logits)}`];
  const driver = card ? `; the driver says that ${formatBytes(card.usedNow - card.usedBefore)} of the card were taken, and ${formatBytes(card.usedNow)} are used` : "";
  return `model memory: ${formatBytes(total)} at most of ${formatBytes(planned.total)} planned (${parts.join(", ")})${driver}`;
}
