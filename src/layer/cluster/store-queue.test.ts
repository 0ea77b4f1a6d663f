import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { digestOf } from "../../base/digest.ts";
import type { SharedLayer } from "./cluster-options.ts";
import { StoreQueue } from "./store-queue.ts";

const directory = await mkdtemp(join(tmpdir(), "clip-stores-"));
after(() => rm(directory, { recursive: true, force: true }));

function layer(name: string): SharedLayer {
  const digest = (text: string) => digestOf(Buffer.from(text));
  return { layerDigest: digest(name), diffId: digest(`${name} plain`), size: 5 };
}

test("what waits survives a restart, with its attempts", () => {
  const path = join(directory, "restart.db");
  const queue = StoreQueue.open(path, 10);
  queue.add(layer("a"), false, 100);
  queue.add(layer("b"), true, 200);
  queue.postpone(layer("a"), 300);
  queue.close();
  const again = StoreQueue.open(path, 10);
  assert.equal(again.length, 2);
  const b = { ...layer("b"), replace: true, queuedAt: 200, dueAt: 200, attempts: 0 };
  assert.deepEqual(again.first(), b);
  again.settle(b);
  const a = { ...layer("a"), replace: false, queuedAt: 100, dueAt: 300, attempts: 1 };
  assert.deepEqual(again.first(), a);
  again.close();
});

test("a layer that waits already becomes due, and is replaced if anyone wants that", () => {
  const queue = StoreQueue.open(join(directory, "again.db"), 10);
  queue.add(layer("a"), true, 100);
  queue.postpone(layer("a"), 9_000);
  queue.add(layer("a"), false, 500);
  assert.equal(queue.length, 1);
  assert.deepEqual([...queue.layers()], [layer("a").layerDigest]);
  const { dueAt, queuedAt, replace } = queue.first() ?? assert.fail();
  assert.deepEqual({ dueAt, queuedAt, replace }, { dueAt: 500, queuedAt: 100, replace: true });
  queue.close();
});

test("those that have waited longest make room", () => {
  const queue = StoreQueue.open(join(directory, "full.db"), 2);
  assert.deepEqual(queue.add(layer("a"), false, 1), []);
  assert.deepEqual(queue.add(layer("b"), false, 2), []);
  const dropped = queue.add(layer("c"), false, 3);
  assert.deepEqual(
    dropped.map(({ layerDigest }) => layerDigest),
    [layer("a").layerDigest],
  );
  assert.equal(queue.length, 2);
  assert.equal(queue.layers().has(layer("a").layerDigest), false);
  queue.settle(queue.first() ?? assert.fail());
  assert.deepEqual([...queue.layers()], [layer("c").layerDigest]);
  queue.close();
});
