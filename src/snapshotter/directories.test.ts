import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { chmod, link, mkdir, readdir, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { silentLog } from "../telemetry/log.ts";
import { createRoot, SnapshotDirectories } from "./directories.ts";
import { diskUsage, UsageMeter } from "./disk-usage.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-directories-"));
after(() => rmSync(directory, { recursive: true, force: true }));

test("directories of no snapshot are swept at the start, the others stay", async () => {
  const root = join(directory, "sweep");
  for (const path of ["s/1/kept", "s/2/orphan", "w/1", "w/3", "s/junk", "trash/old/x"]) {
    await mkdir(join(root, path), { recursive: true });
  }
  const directories = new SnapshotDirectories(root, silentLog);
  await directories.open(new Set([1]));
  assert.deepEqual(await readdir(join(root, "s")), ["1"]);
  assert.deepEqual(await readdir(join(root, "w")), ["1"]);
  await directories.drain();
  assert.deepEqual(await readdir(join(root, "trash")), []);
  assert.ok(existsSync(join(root, "s/1/kept")));
  await directories.close();
});

test("the root of a snapshot has the mode of its parent's root, or 0755 whatever the umask", async () => {
  const umask = process.umask(0o077);
  try {
    const directories = new SnapshotDirectories(join(directory, "modes"), silentLog);
    await directories.open(new Set());
    const { upper: first } = await directories.create(1, undefined);
    assert.equal((await stat(first)).mode & 0o7777, 0o755);
    await chmod(first, 0o1711);
    const { upper: second } = await directories.create(2, await directories.rootOf(1));
    assert.equal((await stat(second)).mode & 0o7777, 0o1711);
    const discarded = Promise.all([directories.discard(1), directories.discard(7)]);
    await directories.drain();
    await discarded;
    assert.ok(!existsSync(first) && existsSync(second));
    await directories.close();
  } finally {
    process.umask(umask);
  }
});

test("a root that overlayfs could not be told is refused", async () => {
  for (const root of ["relative", "/a b", "/a:b", "/a,b", ""]) {
    await assert.rejects(createRoot(root), (error) => isClipError(error, "ARGUMENT_INVALID"), root);
  }
});

test("usage counts blocks and inodes, hard links once, and the directory itself", async () => {
  const root = join(directory, "usage");
  await mkdir(join(root, "sub"), { recursive: true });
  await writeFile(join(root, "file"), Buffer.alloc(100_000));
  await link(join(root, "file"), join(root, "sub/again"));
  await symlink("file", join(root, "link"));
  await writeFile(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe])]), "not UTF-8");
  const usage = await diskUsage(root);
  assert.equal(usage.inodes, 5);
  assert.ok(usage.bytes >= 100_000 && usage.bytes < 200_000, `${usage.bytes}`);
  assert.deepEqual(await diskUsage(join(root, "gone")), { bytes: 0, inodes: 0 });
  await assert.rejects(diskUsage(root, AbortSignal.abort()), (error) =>
    isClipError(error, "ABORTED"),
  );
});

test("a measurement is kept for its time, forgotten on demand, and refused after the end", async () => {
  const root = join(directory, "meter");
  await mkdir(root);
  const meter = new UsageMeter(60_000);
  const before = await meter.measure(root);
  await writeFile(join(root, "x"), "");
  assert.deepEqual(await meter.measure(root), before);
  meter.forget(root);
  assert.equal((await meter.measure(root)).inodes, before.inodes + 1);
  meter.forget(root);
  meter.close();
  await assert.rejects(meter.measure(root), (error) => isClipError(error, "CLOSED"));
});
