// Builds the native runtime and lays it out as the package that carries it for this platform:
//   node scripts/package-native.mjs         build/packages/@layerweave/<platform>-<arch>, ready for `npm publish`
// layerweave names these packages, at its own version, as optional dependencies; npm installs the one that fits.
import { execFileSync } from "node:child_process";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const built = join(root, "build", "native");

execFileSync(process.execPath, [join(import.meta.dirname, "build-native.mjs")], { stdio: "inherit" });

const { version, license } = JSON.parse(await readFile(join(root, "package.json"), "utf8"));
const name = `@layerweave/${process.platform}-${process.arch}`;
const files = ["layerweave_native.node", process.platform === "darwin" ? "liblayerweave_ops.dylib" : "liblayerweave_ops.so"];
const target = join(root, "build", "packages", name);
await rm(target, { recursive: true, force: true });
await mkdir(target, { recursive: true });
for (const file of files) await copyFile(join(built, file), join(target, file));
const manifest = {
  name,
  version,
  description: `The native runtime of layerweave for ${process.platform} on ${process.arch}`,
  license,
  os: [process.platform],
  cpu: [process.arch],
  // Node tells its C library's version where that is glibc; what was built against it does not run on musl.
  ...(process.platform === "linux" ? { libc: [process.report.getReport().header.glibcVersionRuntime ? "glibc" : "musl"] } : {}),
  files,
};
await writeFile(join(target, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
console.log(target);
