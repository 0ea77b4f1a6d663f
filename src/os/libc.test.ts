import assert from "node:assert/strict";
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { mount, punchHole, tryLock, unmount, wallClockNanoseconds } from "./libc.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-libc-"));
after(() => rmSync(directory, { recursive: true, force: true }));

test("the wall clock agrees with Node's and moves between two calls", () => {
  const before = BigInt(Date.now()) * 1_000_000n;
  const first = wallClockNanoseconds();
  const second = wallClockNanoseconds();
  assert.ok(first >= before - 1_000_000n && first - before < 1_000_000_000n);
  assert.ok(second > first);
});

test("a failed mount names the call, the errno and the place", async () => {
  const target = join(directory, "missing");
  await assert.rejects(
    mount({ source: "none", target, type: "tmpfs", flags: 0, data: "" }),
    (error) =>
      isClipError(error, "SYSTEM_CALL") &&
      error.context["call"] === "mount" &&
      /E(NOENT|PERM)/.test(error.message) &&
      error.message.includes(target),
  );
});

test("a failed unmount is an error", async () => {
  await assert.rejects(unmount(directory), (error) => isClipError(error, "SYSTEM_CALL"));
});

test("a punched hole frees blocks and reads as zeros", async () => {
  const path = join(directory, "file");
  writeFileSync(path, Buffer.alloc(1 << 20, 1));
  const fd = openSync(path, "r+");
  await punchHole(fd, 0, 1 << 19);
  closeSync(fd);
  const after = statSync(path);
  assert.equal(after.size, 1 << 20);
  assert.ok(after.blocks * 512 < 1 << 20);
});

test("a lock is held by one descriptor at a time and goes with it", () => {
  const path = join(directory, "lock");
  const first = openSync(path, "w");
  const second = openSync(path, "w");
  assert.equal(tryLock(first), true);
  assert.equal(tryLock(second), false);
  closeSync(first);
  assert.equal(tryLock(second), true);
  closeSync(second);
});
