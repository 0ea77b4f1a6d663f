/** What is mounted where, as far as deleting directories has to know. */
import { readFile } from "node:fs/promises";
import { MNT_DETACH, unmount } from "../os/libc.ts";

/** Detaches every mount at or below `path`, the innermost first. */
export async function detachMountsBelow(path: string): Promise<void> {
  const table = await readFile("/proc/self/mountinfo", "utf8");
  for (const mountpoint of mountpointsBelow(table, path)) await unmount(mountpoint, MNT_DETACH);
}

/** The mount points at or below `path` in a mountinfo table (proc(5)), the innermost first. */
export function mountpointsBelow(table: string, path: string): string[] {
  return table
    .split("\n")
    .map((line) => unescape(line.split(" ")[4] ?? ""))
    .filter((mountpoint) => mountpoint === path || mountpoint.startsWith(`${path}/`))
    .toReversed();
}

// Space, tab, newline and backslash are in octal.
function unescape(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}
