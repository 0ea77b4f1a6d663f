/** Mounting EROFS images whose data is in another file. */
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { release } from "node:os";
import { join } from "node:path";
import { Semaphore } from "../base/concurrency.ts";
import { digestOf } from "../base/digest.ts";
import { describeError } from "../base/errors.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import { MNT_DETACH, mount, MS_RDONLY, unmount } from "../os/libc.ts";
import type { Log } from "../telemetry/log.ts";

/** What {@link mountErofs} takes. */
export interface ErofsMountRequest {
  /** The metadata image: a file, not on overlayfs. */
  image: string;
  /** The file of the data device. No comma in its path. */
  device: string;
  /** Where to mount it: a directory. */
  target: string;
  /** How far the kernel reads ahead in a file, in KiB. */
  readAheadKilobytes: number;
  log: Log;
}

// One at a time, so that the new entry below /sys/class/bdi is that of the new mount.
const oneAtATime = new Semaphore(1);

/**
 * Mounts a layer. An earlier mount at the same place is covered, never gone for a moment.
 * @throws ClipError SYSTEM_CALL
 */
export async function mountErofs(request: ErofsMountRequest): Promise<void> {
  const { image, device, target } = request;
  await oneAtATime.run(async () => {
    const before = new Set(await backingDevices());
    await mount({
      source: image,
      target,
      type: "erofs",
      flags: MS_RDONLY,
      data: `device=${device}`,
    });
    for (const name of await backingDevices()) {
      if (!before.has(name)) await raiseReadAhead(name, request);
    }
  });
}

/**
 * Whether this kernel can mount a metadata image from `directory` with its data in a regular file
 * (Linux 6.12). It is tried, since a distribution may have built it without.
 */
export async function supportsErofs(directory: string, log: Log): Promise<boolean> {
  const [major = 0, minor = 0] = release().split(".").map(Number);
  if (major < 6 || (major === 6 && minor < 12)) return false;
  const base = join(directory, `selftest-${process.pid}`);
  const [image, device, target] = ["image", "device", "mount"].map((name) => join(base, name)) as [
    string,
    string,
    string,
  ];
  try {
    await mkdir(target, { recursive: true });
    const diffId = digestOf(Buffer.alloc(0));
    await writeFile(image, buildErofsImage([], { blobSize: 4096, diffId }).image);
    await writeFile(device, Buffer.alloc(4096));
    await mountErofs({ image, device, target, readAheadKilobytes: 128, log });
    await unmount(target, MNT_DETACH);
    return true;
  } catch (error) {
    log.warn({ error: describeError(error) }, "this kernel cannot mount layers with EROFS");
    return false;
  } finally {
    await rm(base, { recursive: true, force: true });
  }
}

/** Names below /sys/class/bdi of all EROFS mounts whose image is a file. */
async function backingDevices(): Promise<string[]> {
  try {
    return (await readdir("/sys/class/bdi")).filter((name) => name.startsWith("erofs-"));
  } catch {
    return [];
  }
}

async function raiseReadAhead(name: string, request: ErofsMountRequest): Promise<void> {
  const path = `/sys/class/bdi/${name}/read_ahead_kb`;
  try {
    if (Number(await readFile(path, "latin1")) < request.readAheadKilobytes) {
      await writeFile(path, String(request.readAheadKilobytes));
    }
  } catch (error) {
    request.log.debug({ path, error: describeError(error) }, "readahead could not be raised");
  }
}
