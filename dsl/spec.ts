import { recordCallSite } from "../core/origin.js";

/** Freezes `value` and everything it holds: a layout is data, and nobody changes it after it was said. */
function deepFreeze<T>(value: T): T {
  if (typeof value === "object" && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const inner of Object.values(value)) deepFreeze(inner);
  }
  return value;
}

/** Finishes a constructor's value: frozen, and remembered with the call that made it. */
export function made<T extends object>(value: T, constructor: (...args: never[]) => unknown): T {
  return recordCallSite(deepFreeze(value), constructor);
}

/** A copy of `options` without the fields that are `undefined`, so that defaults apply to them. */
export function given<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
}

/** A value in few words, for messages. */
export function describeValue(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "function") return "a function";
  if (Array.isArray(value)) return "a list";
  if (typeof value !== "object" || value === null) return String(value);
  return "kind" in value && typeof value.kind === "string" ? `{ kind: ${JSON.stringify(value.kind)} }` : "an object";
}
