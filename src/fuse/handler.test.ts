import assert from "node:assert/strict";
import { constants } from "node:os";
import { test } from "node:test";
import fc from "fast-check";
import * as fixtures from "./fixtures.ts";
import { handle } from "./handler.ts";
import { nodeIdOf, type FuseLayer } from "./layer.ts";
import type { HandlerState } from "./nodes.ts";
import { opcode } from "./opcodes.ts";
import { replyBytesMax, type HandedRead } from "./outcome.ts";
import { direntBytes, entryBytes, readBytesMax } from "./protocol.ts";

const { errno } = constants;
const out = Buffer.alloc(replyBytesMax);
const tree = fixtures.makeSmallTree();
const layerNumber = 3;
const blob = nodeIdOf(layerNumber, 0);
const directory = nodeIdOf(layerNumber, tree.rootNid);
const file = nodeNamed("data");
const symlink = nodeNamed("link");

function nodeNamed(name: string): number {
  return nodeIdOf(layerNumber, tree.lookup(tree.rootNid, Buffer.from(name)) ?? 0);
}

function setUp(options: { present?: boolean; noOpen?: boolean } = {}): {
  state: HandlerState;
  layer: FuseLayer;
} {
  const layer = fixtures.makeLayer({
    number: layerNumber,
    size: 10_000,
    spanBytes: 1000,
    present: options.present ?? true,
  });
  return { layer, state: fixtures.makeState([{ layer, tree }], options.noOpen) };
}

/** The body of the reply, or the (negative) error. */
function ask(state: HandlerState, code: number, nodeId: number, body?: Buffer): Buffer | number {
  const outcome = handle(fixtures.makeRequest(code, nodeId, body), state, out);
  assert.ok(outcome.kind === "reply" || outcome.kind === "initialized", outcome.kind);
  assert.equal(out.readUInt32LE(0), outcome.length);
  assert.equal(out.readBigUInt64LE(8), 42n);
  const error = out.readInt32LE(4);
  return error === 0 ? Buffer.from(out.subarray(16, outcome.length)) : error;
}

function bodyOf(answer: Buffer | number): Buffer {
  assert.ok(Buffer.isBuffer(answer), `error ${String(answer)}`);
  return answer;
}

function handedOver(state: HandlerState, nodeId: number, body: Buffer): HandedRead {
  const outcome = handle(fixtures.makeRequest(opcode.READ, nodeId, body), state, out);
  assert.equal(outcome.kind, "handover");
  return outcome.read;
}

test("INIT asks for what the kernel offers and never for more", () => {
  const { state } = setUp();
  const init = Buffer.alloc(64);
  init.writeUInt32LE(7, 0);
  init.writeUInt32LE(45, 4);
  init.writeUInt32LE(0xffff_ffff, 12);
  init.writeUInt32LE(0xffff_ffff, 16);
  const full = bodyOf(ask(state, opcode.INIT, 0, init));
  assert.equal(full.length, 64);
  assert.equal(full.readUInt32LE(0), 7);
  assert.equal(full.readUInt32LE(4), 41);
  assert.equal(full.readUInt16LE(28), 256, "1 MiB in pages");
  assert.equal(full.readUInt32LE(32), 1 << 7, "FUSE_HAS_RESEND");
  init.writeUInt32LE(1, 12);
  const little = bodyOf(ask(state, opcode.INIT, 0, init));
  assert.equal(little.readUInt32LE(12), 1);
  assert.equal(little.readUInt32LE(32), 0);
  init.writeUInt32LE(30, 4);
  assert.equal(ask(state, opcode.INIT, 0, init), -errno.EPROTO);
});

test("a lookup in the root finds blobs and trees and caches no absence", () => {
  const { state } = setUp();
  const found = bodyOf(ask(state, opcode.LOOKUP, 1, fixtures.nameBody("3")));
  assert.equal(found.readBigUInt64LE(0), BigInt(blob));
  assert.equal(found.readBigUInt64LE(16), 0n, "the name is not kept");
  assert.equal(found.readBigUInt64LE(40 + 8), 10_000n, "size");
  const root = bodyOf(ask(state, opcode.LOOKUP, 1, fixtures.nameBody("3.tree")));
  assert.equal(root.readBigUInt64LE(0), BigInt(directory));
  assert.equal(ask(state, opcode.LOOKUP, 1, fixtures.nameBody("4")), -errno.ENOENT);
});

test("a lookup in a tree keeps presence and absence for years", () => {
  const { state } = setUp();
  const found = bodyOf(ask(state, opcode.LOOKUP, directory, fixtures.nameBody("data")));
  assert.equal(found.readBigUInt64LE(0), BigInt(file));
  assert.ok(found.readBigUInt64LE(16) > 10_000_000n);
  assert.equal(found.readBigInt64LE(40 + 32), -5n, "mtime");
  assert.equal(found.readUInt32LE(40 + 52), 123_456_789, "nanoseconds");
  assert.equal(found.readUInt32LE(40 + 60), 0o104755);
  const absent = bodyOf(ask(state, opcode.LOOKUP, directory, fixtures.nameBody("nothing")));
  assert.equal(absent.readBigUInt64LE(0), 0n);
  assert.ok(absent.readBigUInt64LE(16) > 10_000_000n);
});

test("nobody but root looks into layers where they are served", () => {
  const { state } = setUp();
  const root = bodyOf(ask(state, opcode.GETATTR, 1));
  assert.equal(root.readUInt32LE(16 + 60), 0o040500);
});

test("whatever belongs to a layer that is gone is stale", () => {
  const state = fixtures.makeState([]);
  for (const code of [opcode.LOOKUP, opcode.GETATTR, opcode.OPEN, opcode.READ, opcode.READDIR]) {
    const body = code === opcode.LOOKUP ? fixtures.nameBody("x") : fixtures.readBody(0, 10);
    assert.equal(ask(state, code, blob, body), -errno.ESTALE);
  }
});

test("blobs are opened for direct I/O, files of trees with their cache kept", () => {
  const { state } = setUp();
  const readOnly = Buffer.alloc(8);
  const writing = Buffer.alloc(8);
  writing.writeUInt32LE(2, 0);
  assert.equal(bodyOf(ask(state, opcode.OPEN, blob, readOnly)).readUInt32LE(8), 1);
  assert.equal(bodyOf(ask(state, opcode.OPEN, file, readOnly)).readUInt32LE(8), 2);
  assert.equal(ask(state, opcode.OPEN, blob, writing), -errno.EROFS);
  const spared = setUp({ noOpen: true });
  assert.equal(ask(spared.state, opcode.OPEN, file, readOnly), -errno.ENOSYS);
});

test("a read of a blob ends with the blob", () => {
  const { state } = setUp();
  const read = (offset: number, size: number): Buffer =>
    bodyOf(ask(state, opcode.READ, blob, fixtures.readBody(offset, size)));
  assert.deepEqual(read(0, 4096), fixtures.patternAt(0, 4096));
  assert.deepEqual(read(9000, 4096), fixtures.patternAt(9000, 1000));
  assert.equal(read(10_000, 4096).length, 0);
  assert.equal(read(2 ** 50, 4096).length, 0);
});

test("a read of bytes that are not present is handed over", () => {
  const { state, layer } = setUp();
  layer.spanPresent[4] = 0;
  const read = handedOver(state, blob, fixtures.readBody(3500, 2000));
  assert.deepEqual(read, {
    unique: 42n,
    threadId: 4711,
    layer: layerNumber,
    segments: [{ blobOffset: 3500, length: 2000 }],
  });
});

test("a read whose data file fails is handed over", () => {
  const { state } = setUp();
  const broken = { ...state, readLocal: () => false };
  assert.equal(handedOver(broken, blob, fixtures.readBody(0, 10)).segments.length, 1);
});

test("a file of a tree is read through its extents, holes are zeros", () => {
  const { state, layer } = setUp();
  const expected = Buffer.concat([
    fixtures.patternAt(1024, 512),
    Buffer.alloc(512),
    fixtures.patternAt(4096, 88),
  ]);
  const read = (offset: number, size: number): Buffer =>
    bodyOf(ask(state, opcode.READ, file, fixtures.readBody(offset, size)));
  assert.deepEqual(read(0, 4096), expected);
  assert.deepEqual(read(500, 600), expected.subarray(500, 1100));
  layer.spanPresent[4] = 0;
  assert.deepEqual(handedOver(state, file, fixtures.readBody(500, 4096)).segments, [
    { blobOffset: 1524, length: 12 },
    { blobOffset: undefined, length: 512 },
    { blobOffset: 4096, length: 88 },
  ]);
});

test("symlinks and extended attributes are shown as they are", () => {
  const { state } = setUp();
  assert.deepEqual(ask(state, opcode.READLINK, symlink), Buffer.from("target"));
  assert.equal(ask(state, opcode.READLINK, blob), -errno.EINVAL);
  const get = (size: number, name: string): Buffer | number =>
    ask(state, opcode.GETXATTR, file, fixtures.xattrBody(size, name));
  assert.deepEqual(get(10, "user.a"), Buffer.from([0, 1, 255]));
  assert.equal(bodyOf(get(0, "user.a")).readUInt32LE(0), 3);
  assert.equal(get(2, "user.a"), -errno.ERANGE);
  assert.equal(get(10, "user.b"), -errno.ENODATA);
  const listing = ask(state, opcode.LISTXATTR, file, fixtures.xattrBody(100));
  assert.deepEqual(listing, Buffer.from("user.a\0"));
  assert.deepEqual(ask(state, opcode.LISTXATTR, blob, fixtures.xattrBody(100)), Buffer.alloc(0));
});

/** All names of a directory, read in pieces. */
function listDirectory(state: HandlerState, nodeId: number, plus: boolean, size: number): string[] {
  const names: string[] = [];
  for (let cookie = 0; ;) {
    const code = plus ? opcode.READDIRPLUS : opcode.READDIR;
    const body = bodyOf(ask(state, code, nodeId, fixtures.readBody(cookie, size)));
    if (body.length === 0) return names;
    for (let at = 0; at < body.length;) {
      const head = at + (plus ? entryBytes : 0);
      const name = body.subarray(head + 24, head + 24 + body.readUInt32LE(head + 16));
      names.push(name.toString());
      cookie = Number(body.readBigUInt64LE(head + 8));
      at = head + direntBytes(name);
    }
  }
}

test("a directory is listed in pieces of any size without loss or repetition", () => {
  const { state } = setUp();
  const expected = [...tree.readdir(tree.rootNid)].map(({ name }) => name.toString());
  for (const plus of [false, true]) {
    for (const size of [200, 1000, 4096, 65_536]) {
      assert.deepEqual(listDirectory(state, directory, plus, size), expected);
    }
    assert.deepEqual(listDirectory(state, 1, plus, 200), [".", "..", "3", "3.tree"]);
  }
});

test("READDIRPLUS gives no nodeid to `.` and `..`, and the right one to the others", () => {
  const { state } = setUp();
  const body = bodyOf(ask(state, opcode.READDIRPLUS, directory, fixtures.readBody(0, 4096)));
  const step = entryBytes + direntBytes(Buffer.from("."));
  assert.deepEqual(
    [0, 1, 2].map((at) => body.readBigUInt64LE(at * step)),
    [0n, 0n, BigInt(file)],
  );
});

test("everything that would write is refused, and what is not known is declined", () => {
  const { state } = setUp();
  assert.equal(ask(state, opcode.UNLINK, 1, fixtures.nameBody("3")), -errno.EROFS);
  assert.equal(ask(state, opcode.SETATTR, file, Buffer.alloc(88)), -errno.EROFS);
  assert.equal(ask(state, opcode.OPENDIR, directory, Buffer.alloc(8)), -errno.ENOSYS);
  assert.equal(ask(state, 4000, directory), -errno.ENOSYS);
});

test("nobody gets an answer who does not wait for one", () => {
  const { state } = setUp();
  for (const code of [opcode.FORGET, opcode.BATCH_FORGET, opcode.NOTIFY_REPLY]) {
    assert.equal(handle(fixtures.makeRequest(code, file), state, out).kind, "silent");
  }
});

test("an interrupt names the request that it is about", () => {
  const body = Buffer.alloc(8);
  body.writeBigUInt64LE(99n);
  const request = fixtures.makeRequest(opcode.INTERRUPT, 0, body, 100n);
  assert.deepEqual(handle(request, setUp().state, out), {
    kind: "interrupt",
    target: 99n,
    unique: 100n,
  });
});

test("an extent behind the end of the blob is an I/O error, never a read", () => {
  const layer = fixtures.makeLayer({ number: 3, size: 4096, spanBytes: 1000, present: false });
  const state = fixtures.makeState([{ layer, tree }]);
  assert.equal(ask(state, opcode.READ, file, fixtures.readBody(1024, 88)), -errno.EIO);
});

test("a damaged tree is an I/O error and is reported", () => {
  const { state } = setUp();
  const outcome = handle(
    fixtures.makeRequest(opcode.GETATTR, nodeIdOf(layerNumber, 2 ** 31)),
    state,
    out,
  );
  assert.equal(outcome.kind, "reply");
  assert.ok(outcome.fault instanceof Error);
  assert.equal(out.readInt32LE(4), -errno.EIO);
});

test("whatever the request is, the answer is well-formed and carries its number", () => {
  const { state } = setUp({ present: false });
  const nodeIds = [0n, 1n, ...[blob, directory, file, symlink].map(BigInt), 2n ** 63n];
  const knownBody = fc.oneof(
    fc.string().map(fixtures.nameBody),
    fc
      .tuple(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), fc.nat(2 * readBytesMax))
      .map(([offset, size]) => fixtures.readBody(offset, size)),
    fc.uint8Array({ maxLength: 100 }).map((bytes) => Buffer.from(bytes)),
  );
  const request = fc
    .record({
      code: fc.oneof(fc.constantFrom(...Object.values(opcode)), fc.nat(100)),
      nodeId: fc.constantFrom(...nodeIds),
      body: knownBody,
      cut: fc.option(fc.nat(80), { nil: undefined }),
      claimed: fc.option(fc.nat(200), { nil: undefined }),
    })
    .map(({ code, nodeId, body, cut, claimed }) => {
      const whole = fixtures.makeRequest(code, nodeId, body);
      const bytes = Buffer.from(whole.subarray(0, cut));
      if (bytes.length >= 4) bytes.writeUInt32LE(claimed ?? bytes.length, 0);
      return bytes;
    });
  fc.assert(
    fc.property(request, (bytes) => {
      const outcome = handle(bytes, state, out);
      if (outcome.kind === "handover") assert.equal(outcome.read.unique, 42n);
      if (outcome.kind !== "reply" && outcome.kind !== "initialized") return;
      assert.ok(outcome.length >= 16 && outcome.length <= replyBytesMax);
      assert.equal(out.readUInt32LE(0), outcome.length);
      assert.equal(out.readBigUInt64LE(8), 42n);
      const error = out.readInt32LE(4);
      assert.ok(error <= 0 && error > -512);
      assert.ok(error === 0 || outcome.length === 16);
    }),
    { numRuns: 3000 },
  );
});
