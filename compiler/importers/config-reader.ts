import type { Coded, Diagnostics, Values as DiagnosticValues } from "../../core/diagnostics.js";
import { importDiagnostics } from "./diagnostics.js";

/** A config key that an importer knows and does not need. */
export interface IgnoredKey {
  readonly key: string;
  readonly reason: string;
}

type Values = Readonly<Record<string, unknown>>;

/**
 * Typed reads of a config.json. A read accounts for its key; `reportUnknown` reports every key that nobody accounted for.
 * As in Transformers, `null` means that the key is not given. A read that fails reports why and returns a stand-in, so that
 * an importer runs to its end and all problems are found at once.
 */
export class ConfigReader {
  readonly #known = new Set<string>();
  readonly #faulty = new Set<string>();
  readonly #ignored: IgnoredKey[] = [];
  readonly #sections: ConfigReader[] = [];

  constructor(
    private readonly values: Values,
    private readonly found: Diagnostics,
    /** What the model is called: its name on the hub, or the folder's. */
    readonly modelName: string,
    private readonly prefix = "",
  ) {}

  /** Whether the key is there, even as `null`. */
  has(key: string): boolean {
    return Object.hasOwn(this.values, key);
  }

  /** A whole number of at least 1. Without `otherwise` the key must be there. */
  count(key: string, otherwise?: number): number {
    return this.optionalCount(key) ?? otherwise ?? this.#missing(key, 1);
  }

  optionalCount(key: string): number | undefined {
    return this.#whole(key, 1);
  }

  /** A whole number of at least 0. */
  index(key: string): number {
    return this.#whole(key, 0) ?? this.#missing(key, 0);
  }

  /** A finite number above 0. */
  positive(key: string, otherwise?: number): number {
    return this.optionalPositive(key) ?? otherwise ?? this.#missing(key, 1);
  }

  optionalPositive(key: string): number | undefined {
    const value = this.#read(key);
    if (value === undefined) return undefined;
    return typeof value === "number" && Number.isFinite(value) && value > 0 ? value : this.#wrong(key, value, "a finite number above 0", 1);
  }

  boolean(key: string, otherwise?: boolean): boolean {
    const value = this.#read(key);
    if (value === undefined) return otherwise ?? this.#missing(key, false);
    return typeof value === "boolean" ? value : this.#wrong(key, value, "true or false", false);
  }

  /** A count, or the word "auto" (also when absent). */
  countOrAuto(key: string): number | "auto" {
    return this.values[key] === "auto" ? (this.#known.add(key), "auto") : (this.optionalCount(key) ?? "auto");
  }

  /** One of these values, the first when absent; any other is one that the importer can't express. */
  oneOf<const T extends string | number | boolean | null>(key: string, allowed: readonly [T, ...T[]]): T {
    const value = this.#read(key);
    if (value === undefined) return allowed[0];
    const match = allowed.find((each) => each === value);
    if (match === undefined) this.unsupported(key, value, allowed.map(show));
    return match ?? allowed[0];
  }

  /** A list of strings; undefined when absent. */
  optionalStrings(key: string): readonly string[] | undefined {
    const value = this.#read(key);
    if (value === undefined) return undefined;
    return Array.isArray(value) && value.every((each): each is string => typeof each === "string") ? value : this.#wrong(key, value, "a list of strings", []);
  }

  /** A nested object; its keys are accounted for like those around it. */
  section(key: string): ConfigReader | undefined {
    const value = this.#read(key);
    if (value === undefined) return undefined;
    if (!isObject(value)) return this.#wrong(key, value, "an object", undefined);
    const section = new ConfigReader(value, this.found, this.modelName, `${this.prefix}${key}.`);
    this.#sections.push(section);
    return section;
  }

  /** Accounts for keys that don't change what the model computes. */
  ignore(reason: string, ...keys: readonly string[]): void {
    for (const key of keys) {
      if (this.has(key) && !this.#known.has(key)) this.#ignored.push({ key: `${this.prefix}${key}`, reason });
      this.#known.add(key);
    }
  }

  /** An older or second name of a value: must agree with it where it is given. */
  agrees(key: string, value: number, ...withKeys: readonly string[]): void {
    const found = this.#read(key);
    if (found !== undefined && found !== value)
      this.contradicts([key, ...withKeys], `${key} is ${show(found)} where ${withKeys.join(" and ")} make it ${value}`, `Make ${key} ${value}, or leave it out.`);
  }

  unsupported(key: string, value: unknown, supported: readonly string[]): void {
    this.#faulty.add(key);
    this.found.report(importDiagnostics["unsupported-config-value"], { key: `${this.prefix}${key}`, found: show(value), supported });
  }

  /** Reports keys that can't be true together, unless one of them was already reported by itself. */
  contradicts(keys: readonly string[], problem: string, fix: string): void {
    if (keys.some((key) => this.#faulty.has(key))) return;
    this.found.report(importDiagnostics["contradictory-config"], { keys: keys.map((key) => `${this.prefix}${key}`), problem, fix });
  }

  report<P extends DiagnosticValues>(definition: Coded<P>, values: P): void {
    this.found.report(definition, values);
  }

  get ignored(): readonly IgnoredKey[] {
    return [...this.#ignored, ...this.#sections.flatMap((section) => section.ignored)];
  }

  /** Reports every key that was neither read nor ignored; as a warning when `allowed`. */
  reportUnknown(modelType: string, allowed: boolean): void {
    for (const [key, value] of Object.entries(this.values)) {
      if (this.#known.has(key)) continue;
      const values = { key: `${this.prefix}${key}`, value: show(value) };
      if (allowed) this.found.report(importDiagnostics["unknown-config-key-ignored"], values);
      else this.found.report(importDiagnostics["unknown-config-key"], { ...values, modelType });
    }
    for (const section of this.#sections) section.reportUnknown(modelType, allowed);
  }

  #read(key: string): unknown {
    this.#known.add(key);
    const value = this.values[key];
    if (value === null) return undefined;
    // Transformers writes numbers that JSON lacks as {"__float__": "Infinity"}.
    if (isObject(value) && typeof value["__float__"] === "string") return Number(value["__float__"]);
    return value;
  }

  #whole(key: string, least: number): number | undefined {
    const value = this.#read(key);
    if (value === undefined) return undefined;
    const ok = typeof value === "number" && Number.isInteger(value) && value >= least && value < 2 ** 31;
    return ok ? value : this.#wrong(key, value, `a whole number of at least ${least}`, least);
  }

  #missing<T>(key: string, standIn: T): T {
    this.#known.add(key);
    if (!this.#faulty.has(key)) this.found.report(importDiagnostics["missing-config-key"], { key: `${this.prefix}${key}` });
    this.#faulty.add(key);
    return standIn;
  }

  #wrong<T>(key: string, value: unknown, expected: string, standIn: T): T {
    this.#faulty.add(key);
    this.found.report(importDiagnostics["config-type"], { key: `${this.prefix}${key}`, found: show(value), expected });
    return standIn;
  }
}

export function isObject(value: unknown): value is Values {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value as it stands in the file, shortened. */
const show = (value: unknown): string => {
  const text = typeof value === "number" ? String(value) : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
};
