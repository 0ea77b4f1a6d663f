import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { InlineHashes } from "./layer-hashes.ts";
import { createRing, RingWriter, ringOperations } from "./hash-ring.ts";
import { ThreadedHashes } from "./threaded-hashes.ts";

test("a second thread finds the digests that this one would find, layer after layer", () => {
  const threaded = new ThreadedHashes();
  for (const length of [1, 300_000, 12_000_000]) {
    const inline = new InlineHashes();
    const bytes = randomBytes(length);
    for (const hashes of [inline, threaded]) {
      hashes.addCompressed(bytes.subarray(0, length / 2));
      hashes.addUncompressed(bytes);
      hashes.endSpan();
    }
    const found = threaded.end();
    const { compressed, uncompressed, spans } = inline.end();
    assert.deepEqual(
      [found.compressed, found.uncompressed, found.spans].map((part) => Buffer.from(part)),
      [compressed, uncompressed, spans].map((part) => Buffer.from(part)),
    );
  }
  assert.equal(threaded.broken, false);
});

test("whoever fills the ring of a thread that has died is told so", async () => {
  const ring = createRing();
  const module = (name: string) => new URL(name, import.meta.url).href;
  // It takes what is in the ring by then, and ends.
  const worker = new Worker(
    `const { workerData } = require("node:worker_threads");
     Promise.all([import("${module("./hash-ring.ts")}"), import("${module("../os/interrupt.ts")}")]).then(
       ([{ readRing }, { currentThreadId }]) =>
         readRing(workerData, currentThreadId(), () => process.exit()),
     );`,
    { eval: true, workerData: ring },
  );
  const ended = new Promise((resolve) => worker.once("exit", resolve));
  const writer = new RingWriter(ring);
  writer.put(ringOperations.compressed, Buffer.from("some bytes"));
  await ended;
  const fill = () => {
    for (let times = 0; times < 1000; times++) writer.put(ringOperations.endSpan);
  };
  assert.throws(fill, /the hashing thread has died/);
});
