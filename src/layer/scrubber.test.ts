import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { silentLog } from "../telemetry/log.ts";
import { DemandActivity } from "./demand-activity.ts";
import type { LayerRecord } from "./records.ts";
import { ScrubRecords } from "./scrub-records.ts";
import { Scrubber } from "./scrubber.ts";

const base = await mkdtemp(join(tmpdir(), "clip-scrub-"));
after(() => rm(base, { recursive: true, force: true }));

function layer(number: number): LayerRecord {
  const digest = digestOf(Buffer.from(`layer ${number}`));
  const facts = { size: 1, opaqueRoot: false, inodes: 1, ranges: true };
  return { number, layerDigest: digest, diffId: digest, ...facts };
}

const [first, second] = [layer(1), layer(2)];
const digests = [first, second].map(({ layerDigest }) => layerDigest);

void test("it is remembered when layers were checked, and those that have gone are forgotten", () => {
  const path = join(base, "records.db");
  const records = ScrubRecords.open(path);
  assert.deepEqual([...records.checkedAt(digests, 1000).values()], [1000, 1000], "they are new");
  records.note(first.layerDigest, 5000);
  records.close();
  const again = ScrubRecords.open(path);
  assert.deepEqual([...again.checkedAt(digests, 6000).values()], [5000, 1000]);
  again.checkedAt([first.layerDigest], 6000);
  assert.deepEqual([...again.checkedAt(digests, 7000).values()], [5000, 7000]);
  assert.deepEqual(
    [...again.checkedAt(digests, 2000).values()],
    [2000, 2000],
    "the clock went back",
  );
  again.close();
});

void test("the layer that has waited longest is checked first, and one that fails is left alone", async () => {
  const records = ScrubRecords.open(join(base, "order.db"));
  records.note(second.layerDigest, 1);
  records.note(first.layerDigest, 2);
  const order: number[] = [];
  const checkedTwice = Promise.withResolvers<void>();
  const scrubber = new Scrubber({
    intervalMs: 1000 * 3600,
    bytesPerSecond: 1e9,
    activity: new DemandActivity(),
    checked: records,
    layers: () => [first, second],
    check: async ({ number }, { repair, before, signal }) => {
      assert.ok(repair);
      await before(1000, signal);
      order.push(number);
      if (order.length === 2) setImmediate(() => checkedTwice.resolve());
      if (number === 2) throw new Error("the disk is away");
    },
    log: silentLog,
  });
  scrubber.start();
  await checkedTwice.promise;
  await scrubber.close();
  assert.deepEqual(order, [2, 1]);
  const left = ScrubRecords.open(join(base, "order.db"));
  const [firstAt = 0, secondAt = 0] = left.checkedAt(digests, Date.now()).values();
  assert.ok(firstAt > 2, "it was checked");
  assert.equal(secondAt, 1, "it was not");
  left.close();
});

void test("checks keep to their rate, make way for readers, and end at once when they are to", async () => {
  const activity = new DemandActivity();
  const leave = activity.enter();
  let waited = false;
  const begun = Promise.withResolvers<void>();
  const records = ScrubRecords.open(join(base, "rate.db"));
  records.note(first.layerDigest, 1);
  const scrubber = new Scrubber({
    intervalMs: 1000,
    bytesPerSecond: 1000,
    checked: records,
    layers: () => [first],
    check: async (_, { before, signal }) => {
      begun.resolve();
      await before(1, signal);
      assert.ok(waited, "a reader had waited");
      // An hour at this rate.
      await before(3_600_000, signal);
      await before(1, signal);
      assert.fail("nobody may get here");
    },
    ...{ activity, log: silentLog },
  });
  scrubber.start();
  await begun.promise;
  await new Promise((resolve) => setImmediate(resolve));
  waited = true;
  leave();
  await activity.quiet(new AbortController().signal);
  await scrubber.close();
});
