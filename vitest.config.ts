import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Two at a time: several tests start ONNX Runtime sessions, which use every core.
    maxWorkers: 2,
  },
});
