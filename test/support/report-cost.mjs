// Preloaded into a command whose cost a test measures: says its peak memory in bytes and its processor time in seconds when it ends.
process.on("exit", () => {
  const { user, system } = process.cpuUsage();
  process.stderr.write(`\npeak memory ${process.resourceUsage().maxRSS * 1024}\nprocessor time ${(user + system) / 1e6}\n`);
});
