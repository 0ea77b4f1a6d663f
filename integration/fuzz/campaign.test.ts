/** The fuzzers, for about a minute. `make fuzz` goes on for longer. */
import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { test } from "node:test";
import { runCampaign } from "./engine/campaign.ts";
import { readCorpus } from "./engine/corpus.ts";
import { corpusDirectory, fuzzOnce, showReport } from "./fuzz.ts";
import { targets } from "./targets.ts";

const corpusBytesMax = 1024 * 1024;

test("every input of the corpus is handled as it should be", async () => {
  const corpus = new Map<string, Buffer[]>();
  let bytes = 0;
  for (const target of await readdir(corpusDirectory)) {
    assert.ok(target in targets, `there is no target ${target}`);
    const inputs = [...(await readCorpus(corpusDirectory, target)).values()];
    corpus.set(target, inputs);
    bytes += inputs.reduce((sum, { length }) => sum + length, 0);
  }
  assert.ok(bytes < corpusBytesMax, `the corpus has ${bytes} bytes`);
  for (const target of Object.keys(targets)) {
    assert.ok((corpus.get(target)?.length ?? 0) > 0, `${target} has no corpus`);
  }
  const known = Object.keys(targets).map((target) => [target, { executions: 0 }] as const);
  const reports = await runCampaign({
    registry: new URL("./targets.ts", import.meta.url),
    targets: Object.fromEntries(known),
    ...{ corpus, seed: 1, threads: 2 },
  });
  for (const { target, findings, executions } of reports) {
    assert.deepEqual(findings, [], target);
    assert.ok(executions >= (corpus.get(target)?.length ?? 0), target);
  }
});

test("a million inputs crash nothing, hang nothing, and mislead nothing", async (context) => {
  const { executions, problems } = await fuzzOnce((report) =>
    context.diagnostic(showReport(report)),
  );
  assert.equal(problems.join("\n\n"), "");
  assert.ok(executions >= 1_000_000, `${executions} executions`);
  context.diagnostic(`${executions} executions`);
});
