/** The table of mounts: what is mounted where, without touching what is mounted. */
import { readFile } from "node:fs/promises";

/** One mount. */
export interface MountEntry {
  mountpoint: string;
  /** `major:minor` of the device, the name of its directory in /sys/class/bdi. */
  device: string;
  minor: number;
  type: string;
}

/** The topmost mount at a mountpoint (an absolute path without symlinks), if there is one. */
export async function findMount(mountpoint: string): Promise<MountEntry | undefined> {
  const table = parseMountTable(await readFile("/proc/self/mountinfo", "utf8"));
  return table.findLast((entry) => entry.mountpoint === mountpoint);
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
