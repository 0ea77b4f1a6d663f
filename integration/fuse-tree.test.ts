/**
 * A layer with everything that a tar can hold, seen through the FUSE tree and through EROFS over
 * the layer blob: both equal what GNU tar unpacks. Needs root.
 */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { digestOf } from "../src/base/digest.ts";
import { buildErofsImage } from "../src/erofs/writer.ts";
import { makeLayer } from "../src/fuse/fixtures.ts";
import {
  openFuseSession,
  type FuseLayer,
  type FuseReadRequest,
  type FuseSession,
} from "../src/fuse/session.ts";
import { MNT_DETACH, MS_RDONLY, mount, unmount } from "../src/os/libc.ts";
import { member, pax, readEntries } from "../src/tar/test-archive.ts";

const run = promisify(execFile);
const spanBytes = 64 * 1024;

let scratch: string;
let blobPath: string;
let imagePath: string;
let blobSize: number;
let image: Buffer;
let expected: string[];
let descriptor: number;

before(async () => {
  // The image must not lie on overlayfs, which /tmp may be.
  scratch = await mkdtemp("/var/tmp/clip-tree-");
  blobPath = path.join(scratch, "blob");
  imagePath = path.join(scratch, "image");
  const bytes = Buffer.concat([xattrMembers(), await packSample()]);
  blobSize = bytes.length;
  await writeFile(blobPath, bytes);
  descriptor = openSync(blobPath, "r");
  const unpacked = path.join(scratch, "unpacked");
  await mkdir(unpacked);
  const options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", unpacked];
  await run("tar", [...options, "-xpf", blobPath]);
  expected = await list(unpacked);
  const built = buildErofsImage(readEntries(bytes), { blobSize, diffId: digestOf(bytes) });
  image = built.image;
  await writeFile(imagePath, image);
});

after(async () => {
  closeSync(descriptor);
  await rm(scratch, { recursive: true });
});

/** A tar that GNU tar makes: all types, sparse and linked files, odd names, a large directory. */
async function packSample(): Promise<Buffer> {
  const source = path.join(scratch, "source");
  const script = `
    set -e; mkdir -p "$0/sub/deep" "$0/many" "$0/empty"; cd "$0"
    head -c 3000000 /dev/urandom > sub/large; head -c 700 /dev/urandom > small; : > nothing
    ln small sub/deep/hard; ln -s ../small sub/soft; ln -s /no/where dangling; ln sub/soft sub/soft2
    mkfifo fifo; mknod char c 1 3; mknod block b 259 70000
    truncate -s 5000000 sparse; printf begin | dd of=sparse conv=notrunc 2>/dev/null
    printf middle | dd of=sparse bs=1 seek=2500000 conv=notrunc 2>/dev/null
    i=0; while [ $i -lt 700 ]; do i=$((i+1)); echo $i > "many/a-rather-long-name-of-file-number-$i"; done
    printf x > "$(printf 'latin-\\351 \\n')"; chmod 4755 small; chmod 2711 sub; chmod 1777 empty
    chown 70000:100000 sub/large; touch -d '1969-12-31 12:00:00.123456789' nothing
    touch -d '2038-06-01 00:00:00.999999999' sub`;
  await run("sh", ["-c", script, source]);
  const tar = path.join(scratch, "sample.tar");
  await run("tar", ["--format=pax", "--sparse", "--sort=name", "-C", source, "-cf", tar, "."]);
  return readFile(tar);
}

function xattrMembers(): Buffer {
  const binary = Buffer.from([0, 1, 2, 0xff, 0x0a, 0x3d]);
  return Buffer.concat([
    pax([
      ["SCHILY.xattr.user.plain", "value"],
      ["SCHILY.xattr.user.binary", binary],
      ["SCHILY.xattr.user.large", Buffer.alloc(3000, 7)],
    ]),
    member({ name: "attributed", mode: 0o600 }, "content"),
    pax([["SCHILY.xattr.user.directory", "yes"]]),
    member({ name: "attributed-directory/", type: "5", mode: 0o750 }),
  ]);
}

async function list(directory: string): Promise<string[]> {
  const program = fileURLToPath(new URL("tree-listing.ts", import.meta.url));
  const { stdout } = await run(process.execPath, [program, directory], { maxBuffer: 1 << 26 });
  return stdout.split("\n");
}

function layerOf(present: boolean, ofImage = image): FuseLayer {
  const shared = new SharedArrayBuffer(ofImage.length);
  ofImage.copy(new Uint8Array(shared));
  return makeLayer({ size: blobSize, spanBytes, present, dataPath: blobPath, image: shared });
}

async function replyLater(request: FuseReadRequest): Promise<void> {
  await delay(Math.random() * 3);
  const data = Buffer.alloc(request.length);
  readSync(descriptor, data, 0, request.length, request.offset);
  request.reply(data);
}

async function withSession(
  options: { present: boolean; noOpen?: boolean; image?: Buffer },
  use: (session: FuseSession, mountpoint: string) => Promise<void>,
): Promise<void> {
  const mountpoint = path.join(scratch, "fuse");
  const session = await openFuseSession({
    mountpoint,
    noOpen: options.noOpen ?? false,
    layers: [layerOf(options.present, options.image)],
    onRead: (request) => void replyLater(request),
  });
  try {
    await use(session, mountpoint);
  } finally {
    await session.close();
  }
}

async function withErofs(mountpoint: string, use: (directory: string) => Promise<void>) {
  const target = path.join(scratch, "erofs");
  await mkdir(target, { recursive: true });
  const data = `device=${path.join(mountpoint, "1")}`;
  await mount({ source: imagePath, target, type: "erofs", flags: MS_RDONLY, data });
  try {
    await use(target);
  } finally {
    await unmount(target, MNT_DETACH);
  }
}

function assertSameTree(actual: string[]): void {
  const differences = actual.filter((line) => !expected.includes(line));
  assert.deepEqual(differences.slice(0, 5), [], "lines that a reference unpack does not have");
  assert.deepEqual(actual, expected);
}

describe("the FUSE tree", { timeout: 60_000 }, () => {
  test("equals a reference unpack when all is local", async () => {
    await withSession({ present: true }, async (_session, mountpoint) => {
      assertSameTree(await list(path.join(mountpoint, "1.tree")));
    });
  });

  test("equals it when nothing is local, with three readers at once", async () => {
    await withSession({ present: false }, async (_session, mountpoint) => {
      const tree = path.join(mountpoint, "1.tree");
      for (const actual of await Promise.all([list(tree), list(tree), list(tree)])) {
        assertSameTree(actual);
      }
    });
  });

  test("equals it without OPEN requests, and needs no request to be walked again", async () => {
    await withSession({ present: true, noOpen: true }, async (session, mountpoint) => {
      const tree = path.join(mountpoint, "1.tree");
      assertSameTree(await list(tree));
      const walk = async (): Promise<(readonly [string, number])[]> => {
        const before = session.requestCounts();
        const script = `cd ${tree} && find . -printf '%p %s %l\n'`;
        await run("sh", ["-c", script], { maxBuffer: 1 << 24 });
        return Object.entries(session.requestCounts())
          .map(([name, count]) => [name, count - (before[name] ?? 0)] as const)
          .filter(([, count]) => count > 0);
      };
      assert.equal(session.requestCounts()["OPEN"], 1);
      // The kernel may have dropped what it knew, if the machine had other use for the memory.
      let requests = await walk();
      for (let tries = 0; tries < 4 && requests.some(([, count]) => count > 5); tries++) {
        requests = await walk();
      }
      // Only the root of the mount is looked at again, and find asks which file system it is.
      const expectedNames = new Set(["LOOKUP", "GETATTR", "STATFS"]);
      assert.ok(
        requests.every(([name, count]) => expectedNames.has(name) && count <= 5),
        JSON.stringify(requests),
      );
    });
  });
});

describe("EROFS over the layer blob", { timeout: 60_000 }, () => {
  test("equals a reference unpack, and metadata causes no request", async () => {
    await withSession({ present: false }, async (session, mountpoint) => {
      await withErofs(mountpoint, async (directory) => {
        const before = session.requestCounts();
        await run("find", [directory, "-printf", "%p %s %l\n"], { maxBuffer: 1 << 24 });
        assert.deepEqual(session.requestCounts(), before);
        assertSameTree(await list(directory));
      });
    });
  });

  test("shows the same whiteouts and opaque directories as the FUSE tree", async () => {
    const bytes = Buffer.concat([
      member({ name: "gone/.wh.name" }),
      member({ name: "replaced/.wh..wh..opq" }),
      member({ name: "replaced/kept" }),
    ]);
    const built = buildErofsImage(readEntries(bytes), { blobSize, diffId: digestOf(bytes) });
    await writeFile(imagePath, built.image);
    await withSession({ present: true, image: built.image }, async (_session, mountpoint) => {
      const inTree = await list(path.join(mountpoint, "1.tree"));
      assert.ok(inTree.some((line) => line.includes('"trusted.overlay.opaque":"79"')));
      assert.ok(inTree.some((line) => line.includes('"path":"gone/name","mode":"20')));
      await withErofs(mountpoint, async (directory) => {
        assert.deepEqual(await list(directory), inTree);
      });
    });
    await writeFile(imagePath, image);
  });

  test("a session that closes under a mount fails its readers and hangs nobody", async () => {
    const asked = Promise.withResolvers<void>();
    const mountpoint = path.join(scratch, "fuse");
    const session = await openFuseSession({
      mountpoint,
      layers: [layerOf(false)],
      onRead: () => asked.resolve(),
    });
    await withErofs(mountpoint, async (directory) => {
      const reader = run("cat", [path.join(directory, "sub/large")], { encoding: "buffer" });
      const failure = assert.rejects(reader, /Input\/output error/);
      await asked.promise;
      await session.close();
      await failure;
    });
  });

  test("readers that are killed leave no wrong bytes behind", async () => {
    await withSession({ present: false }, async (_session, mountpoint) => {
      await withErofs(mountpoint, async (directory) => {
        const victims = Array.from({ length: 20 }, async () => {
          const file = path.join(directory, "sub/large");
          const victim = spawn("cat", [file], { stdio: "ignore" });
          const exit = once(victim, "exit");
          await delay(Math.random() * 40);
          victim.kill("SIGKILL");
          await exit;
        });
        await Promise.all(victims);
        assertSameTree(await list(directory));
      });
    });
  });
});
