import assert from "node:assert/strict";
import { test } from "node:test";
import { findMount, mountpointsBelow, parseMountTable } from "./mount-table.ts";

test("the mount table is parsed, optional fields and escapes included", () => {
  const table = [
    "22 27 0:21 / /proc rw,nosuid shared:5 - proc proc rw",
    "91 27 0:53 / /var/lib/a\\040b ro shared:7 master:1 - fuse.clip clip ro,user_id=0",
    "92 27 8:1 / / rw - ext4 /dev/sda1 rw",
    "",
  ].join("\n");
  assert.deepEqual(parseMountTable(table), [
    { mountpoint: "/proc", device: "0:21", minor: 21, type: "proc" },
    { mountpoint: "/var/lib/a b", device: "0:53", minor: 53, type: "fuse.clip" },
    { mountpoint: "/", device: "8:1", minor: 1, type: "ext4" },
  ]);
});

test("a mount of this machine is found", async () => {
  assert.equal((await findMount("/proc"))?.type, "proc");
  assert.equal(await findMount("/no/such/place"), undefined);
});

test("mount points at and below a path are found, the innermost first", () => {
  const table = [
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw",
    "23 22 0:1 / /r/s/1 rw - tmpfs tmpfs rw",
    "24 23 0:2 / /r/s/1/with\\040space rw - tmpfs tmpfs rw",
    "25 22 0:3 / /r/s/10 rw - tmpfs tmpfs rw",
    "",
  ].join("\n");
  assert.deepEqual(mountpointsBelow(parseMountTable(table), "/r/s/1"), [
    "/r/s/1/with space",
    "/r/s/1",
  ]);
  assert.deepEqual(mountpointsBelow(parseMountTable(table), "/r/s/2"), []);
});
