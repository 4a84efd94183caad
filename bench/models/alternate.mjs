// Times several processes in turns, so that what else the machine does falls on all of them.
import { fork } from "node:child_process";

/** The next message of a process; an error where it ends instead. */
const answer = (child, question) =>
  new Promise((resolve, reject) => {
    const failed = (code) => reject(new Error(`${child.spawnargs.slice(1).join(" ")} ended with ${code}`));
    child.once("exit", failed);
    child.once("message", (message) => {
      child.off("exit", failed);
      resolve(message);
    });
    if (question) child.send(question);
  });

export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/**
 * Has each of `sides` ({ name, script, args, tokens }) continue a prompt `rounds` times by its tokens, after one time that does not
 * count, and stops them. `each` is called before every round that counts.
 * @returns per side { name, prefillMs, decodeMs }: medians over the rounds, and the least of each as { least }
 */
export async function alternate(sides, prompt, rounds, each = () => {}) {
  const running = [];
  try {
    for (const { name, script, args, tokens } of sides) {
      const child = fork(script, args.map(String));
      running.push({ name, child, question: { prompt, tokens }, times: [] });
      await answer(child);
    }
    for (let round = 0; round <= rounds; round++) {
      if (round > 0) each();
      for (const { child, question, times } of running) {
        const time = await answer(child, question);
        if (round > 0) times.push(time);
      }
    }
  } finally {
    for (const { child } of running) child.kill();
  }
  return running.map(({ name, times }) => {
    const summary = (reduce) => ({ prefillMs: reduce(times.map((t) => t.prefillMs)), decodeMs: reduce(times.map((t) => t.decodeMs)) });
    return { name, ...summary(median), least: summary((values) => Math.min(...values)) };
  });
}

export const prompt = (length) => Array.from({ length }, (_, i) => 300 + ((i * 7919) % 20_000));
