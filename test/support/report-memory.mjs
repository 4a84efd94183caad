// Preloaded into a command whose memory a test measures: says its peak in bytes when it ends.
process.on("exit", () => process.stderr.write(`\npeak memory ${process.resourceUsage().maxRSS * 1024}\n`));
