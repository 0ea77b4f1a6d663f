/** What single tests of some test files came to. */
import { run } from "node:test";

/** One test. */
export interface TestOutcome {
  name: string;
  passed: boolean;
}

/** Runs test files, one after the other. */
export async function testOutcomes(files: readonly string[]): Promise<TestOutcome[]> {
  const outcomes: TestOutcome[] = [];
  const events = run({ files: [...files], concurrency: 1 });
  events.on("test:pass", ({ name, skip }) => {
    if (skip === undefined) outcomes.push({ name, passed: true });
  });
  events.on("test:fail", ({ name, details }) => {
    outcomes.push({ name, passed: false });
    process.stderr.write(`${name}: ${String(details.error.cause ?? details.error)}\n`);
  });
  // They are told of only while somebody reads.
  for await (const event of events) void event;
  return outcomes;
}
