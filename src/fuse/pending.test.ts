import assert from "node:assert/strict";
import { constants } from "node:os";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { silentLog } from "../telemetry/log.ts";
import type { HandedRead, Segment } from "./outcome.ts";
import { PendingReads, type FuseReadRequest } from "./pending.ts";

const { errno } = constants;

interface Reply {
  unique: bigint;
  error: number;
  body: string;
}

function setUp(options: { onRead?: (request: FuseReadRequest) => void; killed?: boolean[] } = {}): {
  pending: PendingReads;
  requests: FuseReadRequest[];
  replies: Reply[];
} {
  const requests: FuseReadRequest[] = [];
  const replies: Reply[] = [];
  const killed = options.killed ?? [true];
  const pending = new PendingReads({
    onRead: options.onRead ?? ((request) => requests.push(request)),
    write(buffers) {
      const reply = Buffer.concat(buffers);
      assert.equal(reply.readUInt32LE(0), reply.length);
      replies.push({
        unique: reply.readBigUInt64LE(8),
        error: Math.abs(reply.readInt32LE(4)),
        body: reply.toString("latin1", 16),
      });
    },
    isBeingKilled: () => Promise.resolve(killed.shift() ?? true),
    log: silentLog,
  });
  return { pending, requests, replies };
}

function handedRead(segments: Segment[], unique = 8n): HandedRead {
  return { unique, threadId: 1, layer: 5, segments };
}

const oneSegment: Segment[] = [{ blobOffset: 100, length: 4 }];

test("a read is answered once, whatever comes afterwards", () => {
  const { pending, requests, replies } = setUp();
  pending.add(handedRead(oneSegment));
  const [request] = requests;
  assert.ok(request);
  assert.deepEqual([request.layer, request.offset, request.length], [5, 100, 4]);
  request.reply([Buffer.from("ab"), Buffer.from("cd")]);
  request.reply(Buffer.from("WXYZ"));
  request.fail(errno.ENOENT);
  assert.deepEqual(replies, [{ unique: 8n, error: 0, body: "abcd" }]);
  assert.equal(pending.size, 0);
  assert.equal(request.signal.aborted, false);
});

test("the parts of a read may arrive in any order, holes are filled in", () => {
  const { pending, requests, replies } = setUp();
  pending.add(
    handedRead([
      { blobOffset: 0, length: 2 },
      { blobOffset: undefined, length: 3 },
      { blobOffset: 900, length: 1 },
    ]),
  );
  const reused = Buffer.from("z");
  requests[1]?.reply(reused);
  reused.write("?");
  assert.equal(replies.length, 0);
  requests[0]?.reply(Buffer.from("ab"));
  assert.deepEqual(replies, [{ unique: 8n, error: 0, body: "ab\0\0\0z" }]);
});

test("one part that fails fails the read and stops the others", () => {
  const { pending, requests, replies } = setUp();
  pending.add(
    handedRead([
      { blobOffset: 0, length: 2 },
      { blobOffset: 900, length: 1 },
    ]),
  );
  requests[0]?.fail(errno.ENOSPC);
  requests[1]?.reply(Buffer.from("z"));
  assert.deepEqual(replies, [{ unique: 8n, error: errno.ENOSPC, body: "" }]);
  assert.equal(requests[1]?.signal.aborted, true);
});

test("errors that the kernel would not take become EIO", () => {
  const { pending, requests, replies } = setUp();
  for (const [at, error] of [0, -5, 512, Number.NaN].entries()) {
    pending.add(handedRead(oneSegment, BigInt(2 * (at + 1))));
    requests[at]?.fail(error);
  }
  assert.deepEqual(
    replies.map(({ error }) => error),
    [errno.EIO, errno.EIO, errno.EIO, errno.EIO],
  );
});

test("an answer of the wrong length is a defect of the caller, the reader gets EIO", () => {
  const { pending, requests, replies } = setUp();
  pending.add(handedRead(oneSegment));
  assert.throws(() => requests[0]?.reply(Buffer.from("abc")), { code: "ARGUMENT_INVALID" });
  assert.deepEqual(replies, [{ unique: 8n, error: errno.EIO, body: "" }]);
});

test("a consumer that throws fails the read", () => {
  const { pending, replies } = setUp({
    onRead: () => {
      throw new Error("no");
    },
  });
  pending.add(handedRead(oneSegment));
  assert.deepEqual(replies, [{ unique: 8n, error: errno.EIO, body: "" }]);
});

test("a reader that is being killed gets EINTR at once and the fetch is told", async () => {
  const { pending, requests, replies } = setUp();
  pending.add(handedRead(oneSegment));
  await pending.interrupt(8n, 9n);
  assert.deepEqual(replies, [{ unique: 8n, error: errno.EINTR, body: "" }]);
  assert.equal(requests[0]?.signal.aborted, true);
  requests[0]?.reply(Buffer.from("late"));
  assert.equal(replies.length, 1);
});

test("a reader that merely got a signal keeps waiting, until it is killed", async () => {
  const { pending, requests, replies } = setUp({ killed: [false, false, true] });
  pending.add(handedRead(oneSegment));
  const first = pending.interrupt(8n, 9n);
  await pending.interrupt(8n, 9n);
  assert.equal(requests[0]?.signal.aborted, false);
  assert.equal(replies.length, 0);
  const keepAlive = setInterval(() => {}, 1000);
  await first;
  clearInterval(keepAlive);
  assert.deepEqual(replies, [{ unique: 8n, error: errno.EINTR, body: "" }]);
});

test("an interrupt that overtakes its read is sent again by the kernel", async () => {
  const { pending, replies } = setUp();
  const keepAlive = setInterval(() => {}, 1000);
  await pending.interrupt(8n, 9n);
  clearInterval(keepAlive);
  assert.deepEqual(replies, [{ unique: 9n, error: errno.EAGAIN, body: "" }]);
});

test("when the session closes everything that waits fails, and whatever comes later", async () => {
  const { pending, requests, replies } = setUp();
  pending.add(handedRead(oneSegment, 2n));
  pending.add(handedRead(oneSegment, 4n));
  pending.failAll();
  pending.add(handedRead(oneSegment, 6n));
  assert.deepEqual(
    replies.map(({ unique, error }) => [unique, error]),
    [
      [2n, errno.EIO],
      [4n, errno.EIO],
      [6n, errno.EIO],
    ],
  );
  assert.equal(requests.length, 2);
  assert.ok(requests.every(({ signal }) => signal.aborted));
  await delay(0);
});

test("when the session is left to another process nothing is answered any more", () => {
  const { pending, requests, replies } = setUp();
  pending.add(handedRead(oneSegment, 2n));
  pending.abandonAll();
  requests[0]?.reply(Buffer.from("abcd"));
  pending.add(handedRead(oneSegment, 4n));
  assert.deepEqual(replies, []);
  assert.equal(requests[0]?.signal.aborted, true);
});

test("what no thread could handle gets EIO, unless it was handed over", () => {
  const { pending, replies } = setUp();
  pending.add(handedRead(oneSegment, 2n));
  assert.deepEqual([pending.has(2n), pending.has(4n)], [true, false]);
  pending.failLost(2n);
  pending.failLost(4n);
  assert.deepEqual(replies, [{ unique: 4n, error: errno.EIO, body: "" }]);
});
