// Mistakes on the command line and trouble with folders: the message, the exit code, and nothing left behind.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { describe, expect, test, type TestContext } from "vitest";
import { codesOf, fixture, smallLayout, Workplace } from "./cli.js";

const place = await Workplace.create({
  "small.ts": smallLayout,
  // 134 MB of random weights: seconds of work.
  "large.ts": smallLayout.replace("mlp({ dFf: 64 })", "mlp({ dFf: 350_000 })"),
  // Without a context length: it talks until it is stopped.
  "endless.ts": smallLayout.replace("  contextLength: 128,\n", ""),
  "notes/todo.txt": "…",
});

describe("usage", () => {
  test.each([
    ["an unknown command", ["chek", "small.ts"], "unknown command 'chek'\n(Did you mean check?)"],
    ["an unknown option", ["check", "small.ts", "--jsn"], "(Did you mean --json?)\n  help: `layerweave check --help`"],
    ["no command", [], "A command is missing."],
    ["no source", ["inspect"], "missing required argument 'source'"],
    ["no output", ["compile", "small.ts"], "required option '-o, --out <folder>' not specified"],
    ["a dtype that is none", ["compile", "small.ts", "-o", "x", "--dtype", "int3"], "Allowed choices are float32, bfloat16, float16"],
    ["a pass that is none", ["compile", "small.ts", "-o", "x", "--print-ir-after", "magic"], "resolve-layout"],
    ["two sources of weights", ["compile", "small.ts", "-o", "x", "--weights", "y", "--random", "1"], "cannot be used with option"],
    ["a seed that is no number", ["compile", "small.ts", "-o", "x", "--random", "dice"], "It is no number."],
    ["a count below 0", ["run", "x", "--prompt", "a", "--max-tokens", "-3"], "It is no whole number from 0 on."],
    ["an unknown code", ["explain", "dsl/top-k-above-expert"], "Did you mean dsl/top-k-above-experts?"],
  ])("%s", (_, args, message) => {
    const { code, stdout, stderr } = place.run(args);
    expect(stderr).toContain(message);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  });

  test("with --json the diagnostics are on standard output too", () => {
    const run = place.run(["compile", "small.ts", "--json"]);
    expect(run.code).toBe(2);
    expect(codesOf(run)).toEqual(["cli/usage"]);
    expect(run.stderr).toContain("error cli/usage");
  });
});

describe("sources", () => {
  test.each([
    ["a path without anything", "absent", "absent does not exist", 2],
    ["a folder of something else", "notes", "notes is a folder without manifest.json and config.json (it holds todo.txt)", 2],
    ["a file of something else", "notes/todo.txt", "notes/todo.txt is no TypeScript file (.ts)", 2],
    ["a file as a folder", "small.ts/x", "small.ts/x does not exist", 2],
  ])("%s", (_, source, message, exitCode) => {
    const { code, stdout, stderr } = place.run(["check", source]);
    expect(stderr).toContain(message);
    expect({ code, stdout }).toEqual({ code: exitCode, stdout: "" });
  });

  test("import refuses a folder without a config, and a file that exists", () => {
    const before = place.entries();
    expect(place.run(["import", "notes", "-o", "new.ts"])).toMatchObject({ code: 1, stdout: "", stderr: expect.stringContaining("import/no-config") });
    expect(place.run(["import", fixture("llama"), "-o", "small.ts"])).toMatchObject({ code: 2, stderr: expect.stringContaining("small.ts exists.") });
    expect(readFileSync(place.path("small.ts"), "utf8")).toBe(smallLayout);
    expect(place.run(["import", fixture("llama"), "-o", "absent/new.ts"])).toMatchObject({ code: 1, stderr: expect.stringContaining("cli/not-writable") });
    expect(place.entries()).toEqual(before);
  });
});

describe("compiled folders", () => {
  expect(place.run(["compile", "small.ts", "-o", "model", "--random", "1"]).code).toBe(0);
  const manifest = readFileSync(place.path("model", "manifest.json"), "utf8");
  const damaged = (name: string, text: string): string => {
    mkdirSync(place.path(name), { recursive: true });
    for (const file of ["layout.json", "model.onnx", "weights.safetensors"]) writeFileSync(place.path(name, file), readFileSync(place.path("model", file)));
    writeFileSync(place.path(name, "manifest.json"), text);
    return name;
  };

  test.each([
    ["cut off", manifest.slice(0, 200), "manifest/damaged", "can't be used"],
    ["of another version", manifest.replace('"version": 1', '"version": 99'), "manifest/other-version", "compiled for manifest version 99; this release reads version 1"],
    ["with a file outside", manifest.replace('"file": "model.onnx"', '"file": "../model.onnx"'), "manifest/damaged", "graph.file"],
  ])("a manifest %s", (_, text, code, message) => {
    const folder = damaged("damaged", text);
    for (const args of [["run", folder, "--token-ids", "1"], ["inspect", folder]]) {
      const run = place.run([...args, "--json"]);
      expect(run.code).toBe(1);
      expect(codesOf(run)).toEqual([code]);
      expect(run.stderr).toContain(message);
    }
  });

  test("a layout that was changed, weights that were cut off, no weights at all", () => {
    const folder = damaged("changed", manifest);
    writeFileSync(place.path(folder, "layout.json"), "{}");
    expect(codesOf(place.run(["inspect", folder, "--json"]))).toEqual(["compile/not-compiled"]);
    writeFileSync(place.path(folder, "weights.safetensors"), "cut");
    expect(codesOf(place.run(["run", folder, "--token-ids", "1", "--json"]))).toEqual(["manifest/changed-file"]);
    expect(place.run(["compile", "small.ts", "-o", "planned"]).code).toBe(0);
    expect(codesOf(place.run(["run", "planned", "--token-ids", "1", "--json"]))).toEqual(["runtime/no-weights"]);
  });

  test("prompts that are none", () => {
    for (const [args, code, exitCode] of [
      [["--json"], "cli/no-prompt", 2],
      [["--prompt", "hello", "--json"], "runtime/no-tokenizer", 2],
      [["--token-ids", "1,64", "--json"], "runtime/bad-token", 2],
      [["--token-ids", Array(129).fill(1).join(","), "--json"], "runtime/context-exceeded", 2],
    ] as const) {
      const run = place.run(["run", "model", ...args]);
      expect(codesOf(run)).toEqual([code]);
      expect(run.code).toBe(exitCode);
    }
  });

  test("a reference for another model", () => {
    const run = place.run(["verify", "model", "--reference", fixture("llama", "reference.safetensors"), "--json"]);
    expect(codesOf(run)).toContain("runtime/reference-mismatch");
    expect(run.code).toBe(2);
  });

  test("its own source", () => {
    expect(codesOf(place.run(["compile", "model", "-o", "./model/", "--json"]))).toEqual(["cli/output-is-source"]);
    expect(place.entries("model")).toContain("weights.safetensors");
  });
});

describe("output folders", () => {
  test("something else is there, or above there", () => {
    const before = place.entries();
    expect(codesOf(place.run(["compile", "small.ts", "-o", "notes", "--json"]))).toEqual(["compile/output-exists"]);
    expect(place.entries("notes")).toEqual(["todo.txt"]);
    expect(place.run(["compile", "small.ts", "-o", "small.ts/out"]).code).toBe(1);
    expect(place.entries()).toEqual(before);
  });

  test("a disk without writing, and one without room", (context) => {
    mountSmall(context, "disk");
    try {
      const run = place.run(["compile", "large.ts", "-o", "disk/deep/model", "--random", "1", "--json"]);
      expect(codesOf(run)).toEqual(["weights/disk-full"]);
      expect(run.code).toBe(1);
      expect(place.entries("disk")).toEqual([]);

      expect(place.run(["compile", "small.ts", "-o", "disk/small", "--random", "1"]).code).toBe(0);
      const before = place.entries("disk/small");
      writeFileSync(place.path("disk", "filler"), Buffer.alloc(800 << 10));
      expect(place.run(["compile", "small.ts", "-o", "disk/small", "--random", "2"]).code).toBe(1);
      expect(place.entries("disk")).toEqual(["filler", "small"]);
      expect(place.entries("disk/small")).toEqual(before);

      execFileSync("mount", ["-o", "remount,ro", place.path("disk")]);
      for (const args of [["compile", "small.ts", "-o", "disk/other"], ["import", fixture("llama"), "-o", "disk/other.ts"]]) {
        const refused = place.run(args);
        expect(refused.code).toBe(1);
        expect(refused.stderr).toMatch(/not-writable: .*read-only file system/);
      }
      expect(place.entries("disk")).toEqual(["filler", "small"]);
    } finally {
      execFileSync("umount", [place.path("disk")]);
    }
  });
});

/** A file system of 1 MiB; skips the test where this process may not mount one. */
function mountSmall({ skip }: TestContext, name: string): void {
  mkdirSync(place.path(name));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", place.path(name)], { stdio: "pipe" });
  } catch (error) {
    skip(`no file system can be mounted here: ${(error as Error).message}`);
  }
}

describe("interruptions", () => {
  expect(place.run(["compile", "endless.ts", "-o", "endless", "--random", "1"]).code).toBe(0);
  const talk = ["run", "endless", "--token-ids", "1", "-n", "1000000"];

  test("compile removes what it has written", async () => {
    const before = place.entries();
    const running = place.start(["compile", "large.ts", "-o", "deep/interrupted", "--random", "1"]);
    await until(() => place.entriesOrNone("deep").length > 0);
    running.kill("SIGINT");
    expect(await running.ended).toEqual({ code: 130, stdout: "", stderr: "Interrupted.\n" });
    expect(place.entries()).toEqual(before);
  });

  test("run stops", async () => {
    const running = place.start(talk);
    running.stdout?.once("data", () => running.kill("SIGINT"));
    expect(await running.ended).toMatchObject({ code: 130, stderr: "Interrupted.\n" });
  });

  test("a reader that goes away is no failure", async () => {
    const running = place.start(talk);
    running.stdout?.once("data", () => running.stdout?.destroy());
    expect(await running.ended).toMatchObject({ code: 0, stderr: "" });
  });
});

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 20));
}
