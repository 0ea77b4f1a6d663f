/** The table of mounts: what is mounted where, without touching what is mounted. */
import { readFile } from "node:fs/promises";
import { MNT_DETACH, unmount } from "./libc.ts";

/** One mount. */
export interface MountEntry {
  mountpoint: string;
  /** `major:minor` of the device, the name of its directory in /sys/class/bdi. */
  device: string;
  minor: number;
  type: string;
}

/** All mounts, in the order in which they were made. */
export async function readMountTable(): Promise<MountEntry[]> {
  return parseMountTable(await readFile("/proc/self/mountinfo", "utf8"));
}

/** The topmost mount at a mountpoint (an absolute path without symlinks), if there is one. */
export async function findMount(mountpoint: string): Promise<MountEntry | undefined> {
  const table = await readMountTable();
  return table.findLast((entry) => entry.mountpoint === mountpoint);
}

/**
 * Detaches every mount at or below `path`, the innermost first; whoever uses one keeps it.
 * @throws ClipError SYSTEM_CALL
 */
export async function detachMountsBelow(path: string): Promise<void> {
  const below = mountpointsBelow(await readMountTable(), path);
  for (const mountpoint of below) await unmount(mountpoint, MNT_DETACH);
}

/** The mount points at or below `path`, the innermost first. */
export function mountpointsBelow(table: readonly MountEntry[], path: string): string[] {
  return table
    .map(({ mountpoint }) => mountpoint)
    .filter((mountpoint) => mountpoint === path || mountpoint.startsWith(`${path}/`))
    .toReversed();
}

/** Parses `/proc/PID/mountinfo` (proc(5)). */
export function parseMountTable(table: string): MountEntry[] {
  return table.split("\n").flatMap((line) => {
    const fields = line.split(" ");
    const device = fields[2];
    const mountpoint = fields[4];
    const type = fields[fields.indexOf("-") + 1];
    if (device === undefined || mountpoint === undefined || type === undefined) return [];
    const minor = Number(device.split(":")[1]);
    return [{ mountpoint: unescapeOctal(mountpoint), device, minor, type }];
  });
}

/** The kernel writes blanks, tabs, newlines and backslashes in octal. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
