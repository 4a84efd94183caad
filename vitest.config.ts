import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // Written for node:test: see test/gpu/machine.ts.
    exclude: ["test/gpu/**"],
    // onnxruntime-node posts telemetry unless told not to before it is loaded; the runtime does so, tests that use it directly need it here.
    env: { ORT_DISABLE_TELEMETRY: "1" },
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Two at a time: several tests start ONNX Runtime sessions, which use every core.
    maxWorkers: 2,
  },
});
