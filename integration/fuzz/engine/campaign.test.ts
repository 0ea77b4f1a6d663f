/** That the fuzzers find what there is to be found. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { runCampaign, type TargetReport } from "./campaign.ts";
import { targets } from "./faulty-targets.ts";
import { Fuzzer } from "./fuzzer.ts";

const registry = new URL("./faulty-targets.ts", import.meta.url);

async function fuzz(name: string, stallMs = 60_000): Promise<TargetReport> {
  const entry = targets[name];
  assert.ok(entry !== undefined);
  const options = { registry, seed: 1, threads: 1, corpus: new Map(), stallMs };
  const [report] = await runCampaign({ ...options, targets: { [name]: entry } });
  assert.ok(report !== undefined);
  return report;
}

test("nothing is found where nothing is wrong, and every input is counted", async () => {
  const { findings, executions, behaviours } = await fuzz("none");
  assert.deepEqual(findings, []);
  assert.equal(executions, 5000);
  assert.ok(behaviours > 5);
});

const faults: Readonly<Record<string, RegExp>> = {
  throws: /not foreseen/,
  rejects: /not foreseen either/,
  "rejects-unseen": /seen by nobody/,
  hangs: /it hangs/,
  waits: /it hangs/,
  hoards: /the thread died: .*memory/,
  exits: /the thread ended before its time/,
};
for (const [name, problem] of Object.entries(faults)) {
  test(`a target that ${name} is found out, with the input that makes it`, async () => {
    const isHanging = problem.test("it hangs");
    const { findings } = await fuzz(name, isHanging ? 2000 : 60_000);
    const [finding] = findings;
    assert.ok(finding !== undefined);
    assert.match(finding.problem, problem);
    assert.match(finding.input.toString("latin1"), /magic!/);
  });
}

test("the same seed gives the same inputs, another one others", async () => {
  const inputs = async (seed: number): Promise<string[]> => {
    const target = await targets["none"]?.load();
    assert.ok(target !== undefined);
    const tried: string[] = [];
    const onInput = (input: Buffer): void => void tried.push(input.toString("hex"));
    const fuzzer = new Fuzzer({ target, seed, corpus: [], onInput, onFinding: () => {} });
    await fuzzer.run((executions) => executions >= 2000);
    return tried;
  };
  assert.deepEqual(await inputs(7), await inputs(7));
  assert.notDeepEqual(await inputs(7), await inputs(8));
});
