// Builds the native runtime into build/native: the addon, the library with the CPU kernels of our ops, and where CUDA's
// compiler is the one with the CUDA kernels.
//   node scripts/build-native.mjs               fails when it can't
//   node scripts/build-native.mjs --sanitize    into build/native-sanitized, with AddressSanitizer and UndefinedBehaviorSanitizer;
//                                               use it with LAYERWEAVE_NATIVE_DIR and LD_PRELOAD=$(c++ -print-file-name=libasan.so)
// As npm's install script it never fails an installation: without it models run on the portable backend, and
// `LAYERWEAVE_NATIVE=skip` leaves it out on purpose. The CUDA kernels are compiled for the GPUs that are here; with none, an
// installation leaves them out and `node scripts/build-native.mjs` compiles for all that they support. CUDAARCHS names others,
// as CMake takes them (90a-real), and `LAYERWEAVE_CUDA=skip` leaves the CUDA kernels out anyway.
import { execFile, execFileSync } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { dirname, join, relative } from "node:path";
import { promisify } from "node:util";
import { NoHeaders, ortHeaders } from "./fetch-ort-headers.mjs";

const run = promisify(execFile);
const require = createRequire(import.meta.url);
const root = join(import.meta.dirname, "..");
const sanitize = process.argv.includes("--sanitize");
const out = join(root, "build", sanitize ? "native-sanitized" : "native");
const installing = process.env.npm_lifecycle_event === "install";

/** Why nothing was built, in a few words. */
class NotBuilt extends Error {}

function answers(command, ...args) {
  try {
    execFileSync(command, args, { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

function isInstalled(name) {
  try {
    require.resolve(`${name}/package.json`);
    return true;
  } catch {
    return false;
  }
}

/** Configures and builds one CMake project; what the tools say goes to a log beside the result. */
async function cmake(project, options) {
  const work = join(out, "cmake", project.replaceAll("/", "-"));
  await mkdir(work, { recursive: true });
  const log = join(work, "build.log");
  const flags = Object.entries({ CMAKE_BUILD_TYPE: "Release", LAYERWEAVE_OUTPUT_DIR: out, LAYERWEAVE_SANITIZE: sanitize ? "ON" : "OFF", ...options }).map(([name, value]) => `-D${name}=${value}`);
  const steps = [
    ["-S", join(root, project), "-B", work, ...flags],
    ["--build", work, "--config", "Release", "--parallel", String(availableParallelism())],
  ];
  let said = "";
  for (const args of steps) {
    try {
      const { stdout, stderr } = await run("cmake", args, { maxBuffer: 1 << 28 });
      said += stdout + stderr;
    } catch (error) {
      said += `${error.stdout ?? ""}${error.stderr ?? ""}`;
      if (!installing) process.stderr.write(said);
      throw new NotBuilt(`compiling ${project} failed, see ${relative(root, log)}`);
    } finally {
      await writeFile(log, said);
    }
  }
}

/** nvcc's path, from CUDACXX, PATH or where CUDA is installed by itself. */
const cudaCompiler = () => [process.env.CUDACXX, "nvcc", "/usr/local/cuda/bin/nvcc"].find((command) => command && answers(command, "--version"));

/** CUDAARCHS, or the compute capabilities of the GPUs that are here, as CMake names them. */
function cudaArchitectures() {
  if (process.env.CUDAARCHS) return process.env.CUDAARCHS.split(";");
  if (!answers("nvidia-smi", "-L")) return [];
  const said = execFileSync("nvidia-smi", ["--query-gpu=compute_cap", "--format=csv,noheader"], { encoding: "utf8" });
  const found = [...new Set(said.trim().split(/\s+/))].filter((capability) => Number(capability) >= 8);
  // Hopper's own instructions exist under this name alone.
  return found.map((capability) => (capability === "9.0" ? "90a-real" : `${capability.replace(".", "")}-real`));
}

async function buildCuda(headers) {
  const compiler = process.platform === "linux" ? cudaCompiler() : undefined;
  if (!compiler || sanitize || process.env.LAYERWEAVE_CUDA === "skip") return;
  const architectures = cudaArchitectures();
  if (installing && architectures.length === 0) {
    console.log("layerweave: there is no GPU of compute capability 8.0 or newer, so the CUDA kernels are left out; `node scripts/build-native.mjs` compiles them for all.");
    return;
  }
  console.log(`layerweave: compiling the CUDA kernels for ${architectures.join(", ") || "all GPUs they support"}; this takes minutes (LAYERWEAVE_CUDA=skip leaves them out).`);
  await cmake("kernels", {
    CMAKE_CUDA_COMPILER: compiler,
    ORT_INCLUDE_DIR: headers,
    LAYERWEAVE_TESTS: "OFF",
    ...(architectures.length > 0 && { CMAKE_CUDA_ARCHITECTURES: architectures.join(";") }),
  });
}

async function build() {
  if (process.platform === "win32") throw new NotBuilt("it is built on Linux and macOS only");
  if (!answers("cmake", "--version")) throw new NotBuilt("there is no CMake");
  if (!answers(process.env.CXX ?? "c++", "--version")) throw new NotBuilt("there is no C++ compiler");
  const headers = await ortHeaders().catch((error) => {
    throw error instanceof NoHeaders ? new NotBuilt(error.message) : error;
  });
  await cmake("runtime/native", {
    ORT_INCLUDE_DIR: headers,
    NODE_INCLUDE_DIRS: [require("node-api-headers").include_dir, dirname(require.resolve("node-addon-api/package.json"))].join(";"),
  });
  await cmake("kernels/cpu", { ORT_INCLUDE_DIR: headers, LAYERWEAVE_TESTS: "OFF" });
  await buildCuda(headers);
}

const prebuilt = `@layerweave/${process.platform}-${process.arch}`;
if (process.env.LAYERWEAVE_NATIVE === "skip") console.log("layerweave: the native runtime is left out (LAYERWEAVE_NATIVE=skip); models run on the portable backend.");
else if (!installing || !isInstalled(prebuilt)) {
  try {
    await build();
  } catch (error) {
    if (!(error instanceof NotBuilt)) throw error;
    console.log(`layerweave: the native runtime was not built, or not all of it: ${error.message}. Models run without it.`);
    if (!installing) process.exitCode = 1;
  }
}
