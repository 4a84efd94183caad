// The C API headers of ONNX Runtime 1.29, which its npm package does not carry, taken from a package that does.
//   node scripts/fetch-ort-headers.mjs      prints the folder they are in
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, readdir, rename, rm } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);

/** The version of the C API that the native code is written for. */
const apiVersion = 29;

const source = {
  spec: "com.github.asus4.onnxruntime@0.4.9",
  sha512: "BkzxduSZ9IkeDP6Q8lz2TFU2ie7hSSvS7ZIfzMooExoq0CNzJnuuGaUJ7IsojBgqO4ouD1jXah8OYyJbCN29Fg==",
  headers: "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers",
};

const root = join(import.meta.dirname, "..");

/** Why the headers could not be had, in one line. */
export class NoHeaders extends Error {
  name = "NoHeaders";
}

/**
 * The folder that holds onnxruntime_c_api.h: ORT_INCLUDE_DIR where it is set, else build/ort-include, which is filled
 * from the user's cache or, once, from the registry.
 * @returns {Promise<string>}
 * @throws {NoHeaders}
 */
export async function ortHeaders() {
  const given = process.env.ORT_INCLUDE_DIR;
  if (given) {
    const found = await apiVersionIn(given);
    if (found !== apiVersion) throw new NoHeaders(`ORT_INCLUDE_DIR=${given} holds ${found === undefined ? "no onnxruntime_c_api.h" : `version ${found} of the C API, not ${apiVersion}`}`);
    return given;
  }
  const local = join(root, "build", "ort-include");
  if ((await apiVersionIn(local)) === apiVersion) return local;
  const cached = join(userCache(), "layerweave", `ort-include-${apiVersion}`);
  if ((await apiVersionIn(cached)) !== apiVersion) await download(cached);
  await place(local, (folder) => cp(cached, folder, { recursive: true }));
  return local;
}

async function apiVersionIn(folder) {
  const text = await readFile(join(folder, "onnxruntime_c_api.h"), "utf8").catch(() => "");
  const version = /^#define ORT_API_VERSION (\d+)/m.exec(text)?.[1];
  return version === undefined ? undefined : Number(version);
}

function userCache() {
  if (process.platform === "darwin") return join(homedir(), "Library", "Caches");
  return process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
}

async function download(target) {
  await place(target, async (folder) => {
    const scratch = await mkdtemp(`${folder}-download-`);
    try {
      // npm knows the user's registry, proxy and certificates.
      await run("npm", ["pack", source.spec, "--ignore-scripts", "--silent", "--pack-destination", scratch], { cwd: scratch }).catch((error) => {
        throw new NoHeaders(`npm can't fetch ${source.spec} (${firstLine(error)})`);
      });
      const [file] = await readdir(scratch);
      const archive = join(scratch, file);
      const found = await sha512(archive);
      if (found !== source.sha512) throw new NoHeaders(`${source.spec} is not the package that was pinned: sha512-${found}`);
      await run("tar", ["-xzf", archive, "-C", folder, `--strip-components=${source.headers.split("/").length}`, source.headers]).catch((error) => {
        throw new NoHeaders(`tar can't unpack the headers (${firstLine(error)})`);
      });
    } finally {
      await rm(scratch, { recursive: true, force: true });
    }
  });
}

/** Fills a folder under a temporary name and gives it its own at the end, so that half a folder is never taken for whole. */
async function place(target, fill) {
  await mkdir(join(target, ".."), { recursive: true });
  const temporary = await mkdtemp(`${target}-`);
  try {
    await fill(temporary);
    await rm(target, { recursive: true, force: true });
    await rename(temporary, target);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

async function sha512(file) {
  const hash = createHash("sha512");
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest("base64");
}

const firstLine = (error) => String(error.stderr || error.message).trim().split("\n")[0];

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    process.stdout.write(`${await ortHeaders()}\n`);
  } catch (error) {
    if (!(error instanceof NoHeaders)) throw error;
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  }
}
