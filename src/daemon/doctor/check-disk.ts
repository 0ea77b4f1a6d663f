/** Whether the disk below the root is fit, and has room. */
import { statfs } from "node:fs/promises";
import type { Finding } from "./finding.ts";
import type { Patient } from "./patient.ts";

/** Magic numbers of file systems (statfs(2)) that hold neither overlay directories nor images. */
const unfit: ReadonlyMap<number, string> = new Map([
  [0x794c_7630, "overlayfs"],
  [0x0102_1994, "tmpfs"],
]);

/** Its kind, its free bytes and its free inodes. */
export async function* checkDisk({ config: { root, cache } }: Patient): AsyncGenerator<Finding> {
  const found = await statfs(root).catch(() => undefined);
  if (found === undefined) return;
  const kind = unfit.get(found.type);
  if (kind !== undefined) {
    yield {
      severity: "warning",
      what: `the root is on ${kind}`,
      where: root,
      advice: "Put it on a disk file system such as ext4 or xfs.",
    };
  }
  const free = found.bavail * found.bsize;
  if (free < cache.freeBytesMin) {
    yield {
      severity: "warning",
      what: `${free} bytes are free, less than cache.free_bytes_min`,
      where: root,
      advice:
        "Free space, or remove images: layers are not kept, and pulls fall back to containerd.",
    };
  }
  if (found.files > 0 && found.ffree === 0) {
    yield {
      severity: "error",
      what: "the file system has no inode left",
      where: root,
      advice: "Remove files: nothing new can be made on it.",
    };
  }
}
