// node --test --test-reporter=./test/gpu/json-reporter.mjs: what passed, failed or was skipped, and what tests said, as one JSON text.

export default async function* report(events) {
  const tests = [];
  const said = new Map();
  for await (const { type, data } of events) {
    if (type === "test:diagnostic" && data.file !== undefined) said.set(data.file, [...(said.get(data.file) ?? []), data.message]);
    if ((type !== "test:pass" && type !== "test:fail") || data.details.type === "suite") continue;
    const result = data.skip === undefined ? type.slice("test:".length) : "skip";
    tests.push({ name: data.name, result, milliseconds: Math.round(data.details.duration_ms), ...(result === "fail" ? { error: String(data.details.error?.cause ?? data.details.error) } : {}) });
  }
  const count = (result) => tests.filter((test) => test.result === result).length;
  yield `${JSON.stringify({ passed: count("pass"), failed: count("fail"), skipped: count("skip"), tests, said: [...said.values()].flat() })}\n`;
}
