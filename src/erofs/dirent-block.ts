/** One block of a directory, read. */
import { ClipError } from "../base/errors.ts";
import { nameBytesMax } from "../base/limits.ts";
import { dirent, direntBytes, direntTypes, type InodeType } from "./format.ts";

/** A block of directory entries, checked when they are looked at. */
export class DirentBlock {
  /** How many entries there are: at least one. */
  readonly count: number;
  readonly #bytes: Buffer;

  /** @throws ClipError CORRUPT_EROFS */
  constructor(bytes: Buffer) {
    const namesStart = bytes.length < direntBytes ? 0 : bytes.readUInt16LE(dirent.nameOffset);
    this.count = namesStart / direntBytes;
    this.#bytes = bytes;
    if (!Number.isInteger(this.count) || this.count === 0 || namesStart >= bytes.length) {
      throw damaged();
    }
  }

  /** The index of the entry of this name. */
  find(name: Buffer): number | undefined {
    let low = 0;
    let high = this.count - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const order = this.compare(middle, name);
      if (order === 0) return middle;
      if (order < 0) low = middle + 1;
      else high = middle - 1;
    }
    return undefined;
  }

  /** How the name of an entry compares with another, in byte order. */
  compare(index: number, name: Buffer): number {
    return this.name(index).compare(name);
  }

  /** The name of an entry, a view. */
  name(index: number): Buffer {
    const bytes = this.#bytes;
    const start = this.#nameOffset(index);
    let end = index + 1 < this.count ? this.#nameOffset(index + 1) : bytes.length;
    // Zeros fill the rest of a block behind its last name.
    if (index + 1 === this.count) {
      const nul = bytes.indexOf(0, start);
      if (nul !== -1) end = nul;
    }
    const length = end - start;
    if (length < 1 || length > nameBytesMax || end > bytes.length) throw damaged();
    return bytes.subarray(start, end);
  }

  /** The inode of an entry. */
  nid(index: number): number {
    const at = index * direntBytes + dirent.nid;
    const high = this.#bytes.readUInt32LE(at + 4);
    if (high !== 0) throw damaged();
    return this.#bytes.readUInt32LE(at);
  }

  /** The type of an entry's inode. */
  type(index: number): InodeType {
    const type = typeNames.get(this.#bytes.readUInt8(index * direntBytes + dirent.type));
    if (type === undefined) throw damaged();
    return type;
  }

  #nameOffset(index: number): number {
    const offset = this.#bytes.readUInt16LE(index * direntBytes + dirent.nameOffset);
    if (offset < this.count * direntBytes) throw damaged();
    return offset;
  }
}

const typeNames = new Map(
  Object.entries(direntTypes).map(([name, code]) => [code as number, name as InodeType]),
);

function damaged(): ClipError {
  return new ClipError("CORRUPT_EROFS", "a directory is damaged");
}
