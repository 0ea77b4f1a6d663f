/** Directories as blocks of sorted entries: each an array of fixed entries, then their names. */
import { blockBytes, dirent, direntBytes } from "./format.ts";

/** How the entries of a directory fall into blocks. */
export interface DirentLayout {
  /** Blocks, the last one included. */
  blocks: number;
  /** Bytes used in the last block. */
  lastBytes: number;
}

/** An entry to be written. */
export interface Dirent {
  name: string;
  nid: number;
  type: number;
}

/** Size of a directory whose entries have these names, in byte order, `.` and `..` among them. */
export function layOutDirents(names: readonly string[]): DirentLayout {
  let blocks = 1;
  let used = 0;
  for (const name of names) {
    const needed = direntBytes + name.length;
    if (used + needed > blockBytes) {
      blocks++;
      used = 0;
    }
    used += needed;
  }
  return { blocks, lastBytes: used };
}

/**
 * Writes a directory. `offsetOf` says where in the image each of its blocks begins; blocks must be
 * zeros beforehand.
 */
export function writeDirents(
  image: Buffer,
  entries: readonly Dirent[],
  offsetOf: (block: number) => number,
): void {
  let block = 0;
  for (let first = 0; first < entries.length; block++) {
    const end = blockEnd(entries, first);
    const start = offsetOf(block);
    let nameOffset = (end - first) * direntBytes;
    for (let index = first; index < end; index++) {
      const entry = entries[index] as Dirent;
      const at = start + (index - first) * direntBytes;
      image.writeUInt32LE(entry.nid, at + dirent.nid);
      image.writeUInt16LE(nameOffset, at + dirent.nameOffset);
      image[at + dirent.type] = entry.type;
      image.write(entry.name, start + nameOffset, "latin1");
      nameOffset += entry.name.length;
    }
    first = end;
  }
}

function blockEnd(entries: readonly Dirent[], first: number): number {
  let used = 0;
  let at = first;
  for (; at < entries.length; at++) {
    used += direntBytes + (entries[at] as Dirent).name.length;
    if (used > blockBytes) break;
  }
  return at;
}
