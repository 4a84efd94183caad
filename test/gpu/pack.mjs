// Collects what a machine with a card needs beside the repository to run test/gpu, into one archive: the compiled toolkit
// and tests, the native libraries, and of node_modules what running and compiling take. Neither npm nor a network is needed
// there, only Node, CUDA's libraries and a folder with ONNX Runtime's, which LAYERWEAVE_ORT_DIR names.
//   npm run build && npx tsc -p tsconfig.gpu.json && node scripts/build-native.mjs
//   node test/gpu/pack.mjs layerweave-gpu.tar.gz
// There, in the repository's root:
//   tar -xzf layerweave-gpu.tar.gz && node test/gpu/compile-models.mjs && node --test --test-concurrency=1 build/gpu-tests/test/gpu/
//   node bench/jamba-h100/run.mjs …      as its first lines say
import { execFileSync } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { openSource } from "#dist/cli/source.js";

const root = join(import.meta.dirname, "..", "..");
const [archive] = process.argv.slice(2);
if (archive === undefined) throw new Error("usage: node test/gpu/pack.mjs <archive.tar.gz>");
const native = process.env.LAYERWEAVE_NATIVE_DIR ?? join(root, "build", "native");

const staging = await mkdtemp(join(tmpdir(), "layerweave-pack-"));
try {
  const take = (path, filter = () => true) => cp(join(root, path), join(staging, path), { recursive: true, dereference: true, filter });
  await take("package.json");
  await take("dist", isCode);
  await take(join("build", "gpu-tests"));
  await take(join("test", "gpu"));
  for (const bench of ["jamba-block", "jamba-h100"]) await take(join("bench", bench));
  await mkdir(join(staging, "build", "layouts"), { recursive: true });
  // What reads layouts in TypeScript is left out below.
  for (const name of ["jamba-v0.1", "mixtral-8x7b"])
    await writeFile(join(staging, "build", "layouts", `${name}.json`), JSON.stringify((await openSource(join(root, "examples", `${name}.ts`))).layout));
  for (const library of ["layerweave_native.node", "liblayerweave_ops.so", "liblayerweave_ops_cuda.so"]) {
    await mkdir(join(staging, "build", "native"), { recursive: true });
    await cp(join(native, library), join(staging, "build", "native", library));
  }
  for (const name of await dependencies()) await take(join("node_modules", name), isCode);
  execFileSync("tar", ["-czf", resolve(archive), "-C", staging, "."]);
  console.log(`${archive}: ${((await stat(archive)).size / 1e6).toFixed(1)} MB`);
} finally {
  await rm(staging, { recursive: true, force: true });
}

/** Packages for building native code and for layouts in TypeScript are left out, and so are ONNX Runtime's own libraries. */
async function dependencies() {
  const unused = new Set(["esbuild", "ts-morph", "node-addon-api", "node-api-headers", "adm-zip", "global-agent"]);
  const found = new Set();
  const follow = async (manifest) => {
    const { dependencies: names = {} } = JSON.parse(await readFile(manifest, "utf8"));
    for (const name of Object.keys(names)) {
      if (unused.has(name) || found.has(name)) continue;
      found.add(name);
      await follow(join(root, "node_modules", name, "package.json"));
    }
  };
  await follow(join(root, "package.json"));
  return found;
}

/** Folders, and files that Node reads. */
function isCode(path) {
  if (basename(dirname(path)) === "onnxruntime-node" && basename(path) === "bin") return false;
  if (/\.d\.[cm]?ts$/.test(path)) return false;
  return /\.(m?js|cjs|json|node)$/.test(path) || !/\.[a-z]+$/i.test(basename(path));
}
