/** Whoever reads of a failed test sees what the programs around it have said last. */
import { existsSync, readFileSync } from "node:fs";
import { afterEach } from "node:test";

const linesMax = 60;
const lineMax = 600;

/** Log files by the names of the programs that write them. */
const logs = new Map<string, string>();

/** Has the end of a log told when a test of this process fails. */
export function tellOnFailure(name: string, logFile: string): void {
  logs.set(logFile, name);
}

function tell(test: string): void {
  for (const [file, name] of logs) {
    // It goes with its sandbox.
    if (!existsSync(file)) logs.delete(file);
    else process.stderr.write(`--- ${name} when "${test}" failed, ${file}\n${endOf(file)}\n`);
  }
}

function endOf(file: string): string {
  const lines = readFileSync(file, "utf8").trimEnd().split("\n").slice(-linesMax);
  return lines.map((line) => line.slice(0, lineMax)).join("\n");
}

// Benchmarks run the same programs without tests.
if (process.env["NODE_TEST_CONTEXT"] !== undefined) {
  afterEach((context) => {
    if ("error" in context && context.error != null) tell(context.name);
  });
}
