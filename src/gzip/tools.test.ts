import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { assertRestartable, build, runTool, sample } from "./testing.ts";

const bytes = Buffer.concat([
  sample("text", 400_000, 1),
  sample("zeros", 300_000),
  sample("mixed", 500_000, 2),
]);
const spanBytes = 100_000;

const commands: [string, string[][]][] = [
  ["gzip", [["-1"], ["-6"], ["-9"], ["--rsyncable"]]],
  ["pigz", [["-0"], ["-1"], ["-9"], ["-i"], ["-R"], ["-b", "32", "-p", "4"], ["-H"], ["-U"]]],
  ["igzip", [["-0"], ["-1"], ["-2"], ["-3"]]],
  ["libdeflate-gzip", [["-1"], ["-6"], ["-12"]]],
  ["bgzip", [["-c"], ["-c", "-l", "0"], ["-c", "-l", "9", "-@", "2"]]],
];

for (const [command, variants] of commands) {
  for (const options of variants) {
    test(`what ${command} ${options.join(" ")} writes restarts everywhere`, (context) => {
      const output = runTool(context, command, [...options, ...stdinToStdout(command)], bytes);
      if (output === undefined) return;
      assertRestartable(output, bytes, spanBytes);
      assertRestartable(output, bytes, 1, 70_000);
    });
  }
}

test("outputs of different tools may be concatenated", (context) => {
  const outputs: Buffer[] = [];
  for (const [command, [options]] of commands) {
    const output = runTool(context, command, [...options!, ...stdinToStdout(command)], bytes);
    if (output === undefined) return;
    outputs.push(output);
  }
  assertRestartable(Buffer.concat(outputs), Buffer.concat(outputs.map(() => bytes)), spanBytes);
});

test("every stream of the corpus restarts everywhere", async () => {
  const directory = join(import.meta.dirname, "testdata");
  const names = (await readdir(directory)).filter((name) => name.endsWith(".gz"));
  assert.ok(names.length >= 10);
  for (const name of names) {
    const compressed = await readFile(join(directory, name));
    const expected = gunzipSync(compressed);
    const index = assertRestartable(compressed, expected, 16_384);
    assert.deepEqual(build(compressed, 16_384, 97).index, index, name);
  }
});

function stdinToStdout(command: string): string[] {
  return command === "libdeflate-gzip" || command === "igzip" ? ["-c"] : [];
}
