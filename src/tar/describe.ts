/** Turns the headers of an entry into what clip knows of it. */
import type { EntryType, TarEntry } from "./entry.ts";
import {
  deviceMajorMax,
  deviceMinorMax,
  idMax,
  layerBytesMax,
  pathBytesMax,
} from "../base/limits.ts";
import type { Overrides } from "./extended.ts";
import { corrupt, exceeded } from "./failure.ts";
import { parseDeviceNumbers, type TarHeader } from "./header.ts";
import { normalisePath } from "./path.ts";

const noBytes = Buffer.alloc(0);

/** All that is known of an entry when its headers are complete. */
export interface EntryParts {
  type: EntryType;
  header: TarHeader;
  overrides: Overrides;
  rawName: Buffer;
  rawLink: Buffer;
  block: Buffer;
}

/** The type of GNU tar's old sparse files. */
export const oldSparseFlag = "S".charCodeAt(0);

/**
 * The entry, but for its size and extents.
 * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
 */
export function describeEntry(parts: EntryParts): TarEntry {
  const { type, header, overrides } = parts;
  const isDevice = type === "char" || type === "block";
  const device = isDevice ? parseDeviceNumbers(parts.block) : { major: 0, minor: 0 };
  return {
    path: normalisePath(parts.rawName),
    type,
    mode: header.mode & 0o7777,
    uid: within(overrides.uid ?? header.uid, idMax, "user id"),
    gid: within(overrides.gid ?? header.gid, idMax, "group id"),
    mtimeSeconds: overrides.mtime?.seconds ?? header.mtime,
    mtimeNanoseconds: overrides.mtime?.nanoseconds ?? 0,
    size: 0,
    extents: [],
    linkTarget: linkTargetOf(type, parts.rawLink),
    deviceMajor: within(device.major, deviceMajorMax, "major device number"),
    deviceMinor: within(device.minor, deviceMinorMax, "minor device number"),
    xattrs: overrides.xattrs,
  };
}

function linkTargetOf(type: EntryType, rawLink: Buffer): Buffer {
  if (type === "hardlink") return normalisePath(rawLink);
  if (type !== "symlink") return noBytes;
  if (rawLink.length === 0) throw corrupt("a symbolic link has no target");
  if (rawLink.length >= pathBytesMax) {
    throw exceeded("the length of a link target", rawLink.length, pathBytesMax - 1);
  }
  return Buffer.from(rawLink);
}

/**
 * The kind of entry that a header's type byte and name mean.
 * @throws ClipError CORRUPT_TAR when nobody knows it.
 */
export function typeOf(typeFlag: number, rawName: Buffer): EntryType {
  switch (String.fromCharCode(typeFlag)) {
    case "\0":
    case "0":
      // Before there was a type for directories they were files with a slash at the end.
      return rawName.at(-1) === 0x2f ? "directory" : "file";
    case "7":
    case "S":
      return "file";
    case "1":
      return "hardlink";
    case "2":
      return "symlink";
    case "3":
      return "char";
    case "4":
      return "block";
    case "5":
      return "directory";
    case "6":
      return "fifo";
    default:
      throw corrupt(`the type of a tar entry is unknown: byte ${typeFlag}`);
  }
}

/**
 * Whether data may follow: only files have any, whatever size the header of another entry states
 * (as Go's reader has it).
 */
export function hasData(typeFlag: number): boolean {
  return typeFlag < 0x31 || typeFlag > 0x36;
}

/** @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED when no file can have this size. */
export function checkSize(size: number): void {
  if (size < 0) throw corrupt("the size in a tar header is negative");
  if (size > layerBytesMax) throw exceeded("the size of a file", size, layerBytesMax);
}

function within(value: number, max: number, what: string): number {
  if (value < 0 || value > max) throw corrupt(`the ${what} is out of range: ${value}`);
  return value;
}
