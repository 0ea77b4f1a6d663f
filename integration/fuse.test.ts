/**
 * The FUSE session against the kernel. Needs root and /dev/fuse. Everything that touches the mount
 * is a process of its own: this one serves it.
 */
import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { closeSync, openSync, readSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import path from "node:path";
import { after, afterEach, before, describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { makeLayer } from "../src/fuse/fixtures.ts";
import {
  openConnection,
  openFuseSession,
  type FuseLayer,
  type FuseReadRequest,
  type FuseSession,
} from "../src/fuse/session.ts";

const run = promisify(execFile);
const MiB = 1024 * 1024;
const size = 24 * MiB + 512;

let scratch: string;
let content: Buffer;
let dataPath: string;
let descriptor: number;

before(async () => {
  scratch = await mkdtemp(path.join(tmpdir(), "clip-fuse-"));
  content = randomBytes(size);
  dataPath = path.join(scratch, "data");
  await writeFile(dataPath, content);
  descriptor = openSync(dataPath, "r");
});

after(async () => {
  closeSync(descriptor);
  await rm(scratch, { recursive: true });
});

let session: FuseSession | undefined;
let mountpoint: string;

afterEach(async () => {
  await session?.close();
  session = undefined;
});

async function open(onRead: (request: FuseReadRequest) => void = unexpected): Promise<FuseSession> {
  mountpoint = path.join(scratch, "mnt");
  session = await openFuseSession({ mountpoint, onRead });
  return session;
}

function unexpected(request: FuseReadRequest): void {
  request.fail(constants.errno.EIO);
  throw new Error("a read was handed over");
}

function layerOf(present: boolean, number = 1): FuseLayer {
  return makeLayer({ number, size, spanBytes: MiB, present, dataPath });
}

function replyFromFile(request: FuseReadRequest): void {
  const data = Buffer.alloc(request.length);
  readSync(descriptor, data, 0, request.length, request.offset);
  request.reply(data);
}

async function replyLater(request: FuseReadRequest, milliseconds: number): Promise<void> {
  await delay(Math.random() * milliseconds);
  replyFromFile(request);
}

async function sha256(...files: string[]): Promise<string[]> {
  const { stdout } = await run("sha256sum", files);
  return stdout
    .trim()
    .split("\n")
    .map((line) => line.slice(0, 64));
}

async function drained(opened: FuseSession): Promise<void> {
  while (opened.pendingReads > 0) await delay(5);
}

/** A reader of the blob of layer 1 that waits for bytes. */
function startReader(offset = 0): ChildProcess {
  const blob = path.join(mountpoint, "1");
  return spawn("dd", [`if=${blob}`, "of=/dev/null", "bs=4096", "count=1", `skip=${offset / 4096}`]);
}

describe("blobs", () => {
  test("local bytes are served without anybody being asked", async () => {
    (await open()).addLayer(layerOf(true));
    const [served, original] = await sha256(path.join(mountpoint, "1"), dataPath);
    assert.equal(served, original);
    const { stdout } = await run("stat", ["-c", "%s %F %a", path.join(mountpoint, "1")]);
    assert.equal(stdout, `${size} regular file 400\n`);
  });

  test("bytes from elsewhere reach eight readers at once, while spans become present", async () => {
    const layer = layerOf(false);
    let asked = 0;
    (
      await open((request) => {
        asked++;
        void replyLater(request, 10).then(() => {
          const first = Math.floor(request.offset / MiB);
          const last = Math.floor((request.offset + request.length - 1) / MiB);
          return layer.spanPresent.fill(1, first, last + 1);
        });
      })
    ).addLayer(layer);
    const blob = path.join(mountpoint, "1");
    const results = await Promise.all(Array.from({ length: 8 }, () => sha256(blob)));
    const [original] = await sha256(dataPath);
    for (const [served] of results) assert.equal(served, original);
    assert.ok(asked > 0 && session?.pendingReads === 0);
  });

  test("a failure reaches the reader, and the next read tries again", async () => {
    let failures = 1;
    (
      await open((request) => {
        if (failures-- > 0) request.fail(constants.errno.EIO);
        else replyFromFile(request);
      })
    ).addLayer(layerOf(false));
    const blob = path.join(mountpoint, "1");
    await assert.rejects(run("cat", [blob]), /Input\/output error/);
    assert.deepEqual(await sha256(blob), await sha256(dataPath));
  });

  test("a data file that is gone is not an error as long as someone has the bytes", async () => {
    (await open(replyFromFile)).addLayer({ ...layerOf(true), dataPath: "/no/such/file" });
    assert.deepEqual(await sha256(path.join(mountpoint, "1")), await sha256(dataPath));
  });

  test("layers come and go, names that were looked up before included", async () => {
    const opened = await open();
    const list = async (): Promise<string> => (await run("ls", [mountpoint])).stdout;
    const isThere = (name: string): Promise<boolean> =>
      run("test", ["-e", path.join(mountpoint, name)]).then(
        () => true,
        () => false,
      );
    assert.equal(await list(), "");
    assert.equal(await isThere("2"), false);
    opened.addLayer(layerOf(true, 2));
    assert.equal(await isThere("2"), true);
    assert.equal(await list(), "2\n");
    opened.addLayer(layerOf(true, 10));
    assert.equal(await list(), "10\n2\n");
    assert.throws(() => opened.addLayer(layerOf(true, 10)), { code: "ARGUMENT_INVALID" });
    opened.removeLayer(2);
    assert.equal(await isThere("2"), false);
    assert.equal(await list(), "10\n");
  });

  test("thousands of lookups and many layers at once", async () => {
    const opened = await open();
    for (let number = 1; number <= 500; number++) opened.addLayer(layerOf(true, number));
    const script = `i=0; found=0; while [ $i -lt 3000 ]; do i=$((i+1));
      [ -e "$0/$i" ] && found=$((found+1)); done; echo $found`;
    const results = await Promise.all([1, 2].map(() => run("sh", ["-c", script, mountpoint])));
    assert.deepEqual(
      results.map(({ stdout }) => stdout),
      ["500\n", "500\n"],
    );
    const { LOOKUP = 0, INIT } = opened.requestCounts();
    assert.ok(LOOKUP >= 6000);
    assert.equal(INIT, 1);
  });

  test("nothing can be written", async () => {
    (await open()).addLayer(layerOf(true));
    await assert.rejects(run("sh", ["-c", `: > ${mountpoint}/1`]), /Read-only file system/);
    await assert.rejects(run("mkdir", [`${mountpoint}/x`]), /Read-only file system/);
  });
});

describe("readers that do not wait until the end", () => {
  test(
    "a reader that is killed dies at once, and its fetch is told",
    { timeout: 20_000 },
    async () => {
      const asked = Promise.withResolvers<FuseReadRequest>();
      (await open(asked.resolve)).addLayer(layerOf(false));
      const reader = startReader();
      const request = await asked.promise;
      reader.kill("SIGKILL");
      const [, signal] = (await once(reader, "exit")) as [number | null, string];
      assert.equal(signal, "SIGKILL");
      assert.equal(request.signal.aborted, true);
      request.reply(Buffer.alloc(request.length));
      assert.equal(session?.pendingReads, 0);
    },
  );

  test("a reader that gets a harmless signal goes on waiting", { timeout: 20_000 }, async () => {
    const asked = Promise.withResolvers<FuseReadRequest>();
    const opened = await open(asked.resolve);
    opened.addLayer(layerOf(false));
    const reader = startReader();
    const request = await asked.promise;
    // dd reports its progress on this signal.
    reader.kill("SIGUSR1");
    while ((opened.requestCounts()["INTERRUPT"] ?? 0) === 0) await delay(5);
    await delay(150);
    assert.equal(request.signal.aborted, false);
    replyFromFile(request);
    const [code] = (await once(reader, "exit")) as [number];
    assert.equal(code, 0);
  });

  test("one that is killed after a harmless signal dies, too", { timeout: 20_000 }, async () => {
    const asked = Promise.withResolvers<FuseReadRequest>();
    const opened = await open(asked.resolve);
    opened.addLayer(layerOf(false));
    const reader = startReader();
    await asked.promise;
    reader.kill("SIGUSR1");
    while ((opened.requestCounts()["INTERRUPT"] ?? 0) === 0) await delay(5);
    reader.kill("SIGTERM");
    assert.deepEqual(await once(reader, "exit"), [null, "SIGTERM"]);
  });

  test(
    "many readers are killed at random, the others get the right bytes",
    { timeout: 60_000 },
    async () => {
      const opened = await open((request) => void replyLater(request, 4));
      opened.addLayer(layerOf(false));
      const blob = path.join(mountpoint, "1");
      const good = Promise.all([sha256(blob), sha256(blob)]);
      const victims = Array.from({ length: 30 }, async () => {
        const victim = spawn("cat", [blob], { stdio: "ignore" });
        await delay(Math.random() * 100);
        const exit = once(victim, "exit");
        if (victim.exitCode === null) victim.kill("SIGKILL");
        if (victim.exitCode === null) await exit;
      });
      await Promise.all(victims);
      const [original] = await sha256(dataPath);
      assert.deepEqual((await good).flat(), [original, original]);
      await drained(opened);
    },
  );
});

describe("the end", () => {
  test("closing fails what waits and leaves no mount", { timeout: 20_000 }, async () => {
    const requests: FuseReadRequest[] = [];
    const opened = await open((request) => requests.push(request));
    opened.addLayer(layerOf(false));
    const readers = [0, MiB, 2 * MiB].map((offset) => startReader(offset));
    while (requests.length < 3) await delay(5);
    const exits = readers.map((reader) => once(reader, "exit"));
    await opened.close();
    assert.ok(requests.every(({ signal }) => signal.aborted));
    for (const [code] of await Promise.all(exits)) assert.equal(code, 1);
    const mounts = await readFile("/proc/self/mounts", "utf8");
    assert.equal(mounts.includes(mountpoint), false);
    requests[0]?.reply(Buffer.alloc(requests[0].length));
  });

  test("closing works while a file is open", { timeout: 20_000 }, async () => {
    const opened = await open();
    opened.addLayer(layerOf(true));
    const holder = spawn("sh", ["-c", `exec 5< ${mountpoint}/1; echo; read x; cat <&5`]);
    await once(holder.stdout, "data");
    await opened.close();
    holder.stdin.end("\n");
    const [code] = (await once(holder, "exit")) as [number];
    assert.equal(code, 1);
  });

  test("a mount that is taken away is noticed", { timeout: 20_000 }, async () => {
    const ended = Promise.withResolvers<void>();
    mountpoint = path.join(scratch, "mnt");
    session = await openFuseSession({ mountpoint, onRead: unexpected, onEnd: ended.resolve });
    await run("umount", [mountpoint]);
    await ended.promise;
  });

  test("a mount that a dead process has left is replaced", { timeout: 20_000 }, async () => {
    mountpoint = path.join(scratch, "mnt");
    const dead = await openConnection(mountpoint);
    closeSync(dead.descriptor);
    (await open()).addLayer(layerOf(true));
    assert.deepEqual(await sha256(path.join(mountpoint, "1")), await sha256(dataPath));
    await session?.close();
    const mounts = await readFile("/proc/self/mounts", "utf8");
    assert.equal(mounts.includes(mountpoint), false);
  });

  test("a process that serves can exit without closing", { timeout: 20_000 }, async () => {
    mountpoint = path.join(scratch, "mnt");
    const server = startServer([mountpoint, dataPath, "exit"], ["ignore", "pipe", "inherit"]);
    const [code] = (await once(server, "exit")) as [number];
    assert.equal(code, 7);
    await run("umount", ["-l", mountpoint]);
  });
});

describe("a session outlives its process", () => {
  test("reads go on when the server is killed again and again", { timeout: 60_000 }, async () => {
    mountpoint = path.join(scratch, "mnt");
    const connection = await openConnection(mountpoint);
    const start = (): ChildProcess =>
      startServer(
        [mountpoint, dataPath, "resume"],
        ["ignore", "pipe", "inherit", connection.descriptor],
      );
    try {
      let server = start();
      await once(server.stdout!, "data");
      const results = Promise.all([1, 2].map(() => sha256(path.join(mountpoint, "1"))));
      for (let kills = 0; kills < 12; kills++) {
        await delay(Math.random() * 80);
        server.kill("SIGKILL");
        await once(server, "exit");
        server = start();
        await once(server.stdout!, "data");
      }
      const [original] = await sha256(dataPath);
      assert.deepEqual((await results).flat(), [original, original]);
      server.kill("SIGTERM");
      assert.deepEqual(await once(server, "exit"), [0, null], "it detaches");
      const mounts = await readFile("/proc/self/mounts", "utf8");
      assert.equal(mounts.includes(mountpoint), true);
    } finally {
      await run("umount", ["-l", mountpoint]);
      closeSync(connection.descriptor);
    }
  });
});

test("a session can be left and taken over, and the one that took it over can close it", async () => {
  mountpoint = path.join(scratch, "mnt");
  const connection = await openConnection(mountpoint);
  try {
    const options = { mountpoint, resume: connection, layers: [layerOf(false)] };
    const asked = Promise.withResolvers<FuseReadRequest>();
    const first = await openFuseSession({ ...options, onRead: asked.resolve });
    const reader = sha256(path.join(mountpoint, "1"));
    const { signal } = await asked.promise;
    await first.detach();
    assert.equal(signal.aborted, true);
    const second = await openFuseSession({ ...options, onRead: replyFromFile });
    assert.deepEqual(await reader, await sha256(dataPath));
    await second.close();
    const mounts = await readFile("/proc/self/mounts", "utf8");
    assert.equal(mounts.includes(mountpoint), false);
  } finally {
    closeSync(connection.descriptor);
  }
});

test("layers come and go while others are read", { timeout: 60_000 }, async () => {
  const opened = await open((request) => void replyLater(request, 2));
  opened.addLayer(layerOf(false));
  const reading = Promise.all([1, 2, 3].map(() => sha256(path.join(mountpoint, "1"))));
  for (let number = 2; number < 200; number++) {
    opened.addLayer(layerOf(true, number));
    if (number % 20 === 0) await run("sha256sum", [path.join(mountpoint, String(number))]);
    if (number > 10) opened.removeLayer(number - 8);
    await delay(1);
  }
  const [original] = await sha256(dataPath);
  assert.deepEqual((await reading).flat(), [original, original, original]);
});

function startServer(
  parameters: string[],
  stdio: ("ignore" | "pipe" | "inherit" | number)[],
): ChildProcess {
  const program = fileURLToPath(new URL("fuse-server.ts", import.meta.url));
  return spawn(process.execPath, [program, ...parameters], { stdio });
}
