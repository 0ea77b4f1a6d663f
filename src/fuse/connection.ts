/** The connection to the kernel: /dev/fuse and what is mounted on it. */
import { closeSync, openSync, writevSync } from "node:fs";
import { mkdir, realpath, writeFile } from "node:fs/promises";
import path from "node:path";
import { ClipError, describeError } from "../base/errors.ts";
import { MNT_DETACH, MNT_FORCE, mount, MS_RDONLY, unmount } from "../os/libc.ts";
import type { Log } from "../telemetry/log.ts";
import { findMount, type MountEntry } from "../os/mount-table.ts";
import { encodeResend, readBytesMax } from "./protocol.ts";

/** A mount and the descriptor through which it is served. */
export interface FuseConnection {
  /** /dev/fuse. The mount fails all access once the last copy of it is closed. */
  descriptor: number;
  mount: MountEntry;
}

/**
 * Mounts an empty session, which nobody serves yet: whoever touches it waits. What a process that
 * died has left at the mountpoint is taken away.
 * @throws ClipError SYSTEM_CALL
 */
export async function openConnection(mountpoint: string): Promise<FuseConnection> {
  await mkdir(path.dirname(mountpoint), { recursive: true });
  const place = await resolveParent(mountpoint);
  await removeStaleMounts(place);
  await mkdir(place, { recursive: true });
  const descriptor = openDevice();
  try {
    await mountOn(place, descriptor);
    return await findConnection(place, descriptor);
  } catch (error) {
    closeSync(descriptor);
    throw error;
  }
}

/**
 * Sees to it that a descriptor of /dev/fuse, which another process has opened, is mounted.
 * @returns whether that was done only now: the kernel has yet to begin the session
 * @throws ClipError SYSTEM_CALL; CLOSED when it was mounted once and is not any more
 */
export async function attachConnection(
  mountpoint: string,
  descriptor: number,
): Promise<{ fresh: boolean }> {
  const place = await resolveParent(mountpoint);
  if (wasMounted(descriptor)) {
    await restoreMount(place, descriptor);
    return { fresh: false };
  }
  await removeStaleMounts(place);
  await mkdir(place, { recursive: true });
  await mountOn(place, descriptor);
  return { fresh: true };
}

/**
 * Mounts a session again where somebody has taken its mount away while others still use it (Linux
 * 5.16). Does nothing where the mount is still there.
 * @param mountpoint has no symlinks in its path
 * @returns whether it was missing
 * @throws ClipError CLOSED when the session is over
 */
export async function restoreMount(mountpoint: string, descriptor: number): Promise<boolean> {
  if ((await findMount(mountpoint))?.type === fileSystemType) return false;
  try {
    await mountOn(mountpoint, descriptor);
    return true;
  } catch (error) {
    throw new ClipError("CLOSED", `the FUSE session at ${mountpoint} has ended`, { cause: error });
  }
}

/**
 * What belongs to a descriptor that is mounted already. Does not touch the mount.
 * @throws ClipError SYSTEM_CALL if nothing is mounted there
 */
export async function findConnection(
  mountpoint: string,
  descriptor: number,
): Promise<FuseConnection> {
  const place = await resolveParent(mountpoint);
  const entry = await findMount(place);
  if (entry?.type === fileSystemType) return { descriptor, mount: entry };
  throw new ClipError("SYSTEM_CALL", `no FUSE session is mounted at ${place}`);
}

/** Ends a connection by force, through fusectl: whoever waits gets an error. */
export async function abortConnection(entry: MountEntry, log: Log): Promise<void> {
  const directory = "/sys/fs/fuse/connections";
  const file = path.join(directory, String(entry.minor), "abort");
  try {
    if ((await findMount(directory)) === undefined) {
      await mount({ source: "none", target: directory, type: "fusectl", flags: 0, data: "" });
    }
    await writeFile(file, "1");
  } catch (error) {
    log.error({ file, error: describeError(error) }, "the connection cannot be aborted");
  }
}

const fileSystemType = "fuse.clip";

/** The path without symlinks, but for its last component: that may be a mount nobody serves. */
async function resolveParent(mountpoint: string): Promise<string> {
  return path.join(await realpath(path.dirname(mountpoint)), path.basename(mountpoint));
}

function openDevice(): number {
  try {
    return openSync("/dev/fuse", "r+");
  } catch (error) {
    throw new ClipError("SYSTEM_CALL", "/dev/fuse cannot be opened", {
      hint: "Load the kernel module fuse, and run as root.",
      cause: error,
    });
  }
}

/** The kernel takes no message, not even one that does no harm, before a session is mounted. */
function wasMounted(descriptor: number): boolean {
  try {
    writevSync(descriptor, [encodeResend()]);
    return true;
  } catch (error) {
    // Before Linux 6.9 this very message is not known, which is another error.
    return (error as NodeJS.ErrnoException).code !== "EPERM";
  }
}

async function mountOn(mountpoint: string, descriptor: number): Promise<void> {
  const options = {
    fd: descriptor,
    rootmode: "40000",
    user_id: 0,
    group_id: 0,
    max_read: readBytesMax,
  };
  const data = Object.entries(options).map(([key, value]) => `${key}=${value}`);
  await mount({
    source: "clip",
    target: mountpoint,
    type: fileSystemType,
    // Not nosuid and nodev: a bind mount of a tree would inherit them, and a layer may be bound alone.
    flags: MS_RDONLY,
    data: [...data, "allow_other", "default_permissions"].join(","),
  });
}

async function removeStaleMounts(mountpoint: string): Promise<void> {
  for (let left = 16; left > 0; left--) {
    const entry = await findMount(mountpoint);
    if (entry?.type !== fileSystemType) return;
    // A thread of whoever died may still wait for an answer.
    await unmount(mountpoint, MNT_DETACH | MNT_FORCE);
  }
}
