// Preloaded into a command whose cost a test measures: says its peak memory when it ends.
process.on("exit", () => process.stderr.write(`\npeak memory ${process.resourceUsage().maxRSS * 1024}\n`));
