/** The file table of a layer index: the entries of the tar in columns. */
import {
  deviceMajorMax,
  deviceMinorMax,
  idMax,
  indexPathsBytesMax,
  layerEntriesMax,
  nameBytesMax,
  pathBytesMax,
  xattrBytesMax,
} from "../base/limits.ts";
import type { EntryType, Extent, TarEntry, Xattr } from "../tar/entry.ts";
import { check, checkLimit } from "./failure.ts";
import { type FilesMessage, filesCodec, narrow } from "./messages.ts";

// The position of a type is its number in the index.
const types: readonly EntryType[] = [
  "file",
  "directory",
  "symlink",
  "hardlink",
  "char",
  "block",
  "fifo",
];
const none: Buffer = Buffer.alloc(0);

/** The encoded entries of a tar, in its order. */
export function encodeFileTable(entries: readonly TarEntry[]): Buffer {
  const message: FilesMessage = {
    pathShared: [],
    pathRest: [],
    pathBytes: none,
    types: Buffer.from(entries.map(({ type }) => types.indexOf(type))),
    modes: entries.map(({ mode }) => mode),
    uids: entries.map(({ uid }) => uid),
    gids: entries.map(({ gid }) => gid),
    mtimeSteps: [],
    mtimeNanoseconds: entries.map(({ mtimeNanoseconds }) => mtimeNanoseconds),
    sizes: entries.map(({ size }) => size),
    extentCounts: entries.map(({ extents }) => extents.length),
    extentGaps: [],
    extentRemainders: [],
    extentSteps: [],
    linkLengths: [],
    linkBytes: none,
    devices: [],
    attributes: [],
  };
  const pathBytes: Buffer[] = [];
  const linkBytes: Buffer[] = [];
  const before = { path: none, mtime: 0, archiveEnd: 0, device: 0, attribute: 0 };
  for (const [number, entry] of entries.entries()) {
    const shared = sharedBytes(before.path, entry.path);
    message.pathShared.push(shared);
    message.pathRest.push(entry.path.length - shared);
    pathBytes.push(entry.path.subarray(shared));
    before.path = entry.path;
    message.mtimeSteps.push(entry.mtimeSeconds - before.mtime);
    before.mtime = entry.mtimeSeconds;
    let fileEnd = 0;
    for (const { fileOffset, archiveOffset, length } of entry.extents) {
      message.extentGaps.push(fileOffset - fileEnd);
      fileEnd = fileOffset + length;
      message.extentRemainders.push(entry.size - fileEnd);
      message.extentSteps.push(archiveOffset - blockEnd(before.archiveEnd));
      before.archiveEnd = archiveOffset + length;
    }
    if (isLink(entry.type)) {
      message.linkLengths.push(entry.linkTarget.length);
      linkBytes.push(entry.linkTarget);
    }
    if (isDevice(entry.type)) {
      const { deviceMajor: major, deviceMinor: minor } = entry;
      message.devices.push({ entryStep: number - before.device, major, minor });
      before.device = number;
    }
    for (const { name, value } of entry.xattrs) {
      message.attributes.push({ entryStep: number - before.attribute, name, value });
      before.attribute = number;
    }
  }
  message.pathBytes = Buffer.concat(pathBytes);
  message.linkBytes = Buffer.concat(linkBytes);
  return filesCodec.encode(message);
}

/**
 * The entries of a layer of `layerSize` bytes; everything in them is within its limits.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED
 */
export function decodeFileTable(bytes: Buffer, layerSize: number): TarEntry[] {
  const message = filesCodec.decode(bytes);
  checkColumns(message);
  const paths = decodePaths(message);
  const nextLink = linkReader(message);
  const nextExtents = extentReader(message, layerSize);
  let mtimeSeconds = 0;
  const entries = paths.map((path, number): TarEntry => {
    const type = types[message.types[number] ?? types.length];
    check(type !== undefined, "an entry has an unknown type");
    const mode = message.modes[number] ?? 0;
    const mtimeNanoseconds = message.mtimeNanoseconds[number] ?? 0;
    const uid = message.uids[number] ?? 0;
    const gid = message.gids[number] ?? 0;
    const size = narrow(message.sizes[number]);
    check(mode <= 0o7777, "an entry has an impossible mode");
    check(mtimeNanoseconds < 1e9, "an entry has an impossible time");
    check(uid <= idMax && gid <= idMax, "an entry has an impossible owner");
    check(type === "file" || size === 0, "an entry that is no file has a size");
    mtimeSeconds += narrow(message.mtimeSteps[number]);
    check(Number.isSafeInteger(mtimeSeconds), "an entry has an impossible time");
    return {
      path,
      type,
      mode,
      uid,
      gid,
      mtimeSeconds,
      mtimeNanoseconds,
      size,
      extents: nextExtents(message.extentCounts[number] ?? 0, size),
      linkTarget: isLink(type) ? nextLink(type) : none,
      deviceMajor: 0,
      deviceMinor: 0,
      xattrs: [],
    };
  });
  addDevices(entries, message.devices);
  addAttributes(entries, message.attributes);
  return entries;
}

function checkColumns(message: FilesMessage): void {
  const count = message.types.length;
  checkLimit(count, layerEntriesMax, "the number of entries");
  for (const column of [
    message.pathShared,
    message.pathRest,
    message.modes,
    message.uids,
    message.gids,
    message.mtimeSteps,
    message.mtimeNanoseconds,
    message.sizes,
    message.extentCounts,
  ]) {
    check(column.length === count, "the columns of the entries differ in length");
  }
  const extents = message.extentGaps.length;
  const alike =
    message.extentRemainders.length === extents && message.extentSteps.length === extents;
  check(alike, "the columns of the extents differ in length");
}

// All paths share one buffer: tens of thousands of small ones would each cost more than they hold.
function decodePaths({ pathShared, pathRest, pathBytes }: FilesMessage): Buffer[] {
  let total = 0;
  for (const [number, rest] of pathRest.entries()) {
    const length = (pathShared[number] ?? 0) + rest;
    checkLimit(length, pathBytesMax, "the length of a path");
    total += length;
  }
  checkLimit(total, indexPathsBytesMax, "the length of all paths");
  const all = Buffer.allocUnsafeSlow(total);
  const source = Buffer.from(pathBytes.buffer, pathBytes.byteOffset, pathBytes.length);
  let taken = 0;
  let start = 0;
  let before = none;
  const paths = pathRest.map((rest, number) => {
    const shared = pathShared[number] ?? 0;
    check(shared <= before.length, "a path shares more than there is");
    check(taken + rest <= source.length, "there are too few bytes of paths");
    before.copy(all, start, 0, shared);
    source.copy(all, start + shared, taken, taken + rest);
    taken += rest;
    const path = all.subarray(start, start + shared + rest);
    check(isNormalised(path), "a path is not normalised");
    start += path.length;
    before = path;
    return path;
  });
  check(taken === source.length, "there are more bytes of paths than entries need");
  return paths;
}

function linkReader({ linkLengths, linkBytes }: FilesMessage): (type: EntryType) => Buffer {
  let next = 0;
  let taken = 0;
  return (type) => {
    const length = linkLengths[next++] ?? Infinity;
    check(taken + length <= linkBytes.length, "there are too few bytes of links");
    checkLimit(length, pathBytesMax, "the length of a link");
    const target = Buffer.from(linkBytes.subarray(taken, taken + length));
    taken += length;
    const valid =
      type === "symlink"
        ? length > 0 && length < pathBytesMax && !target.includes(0)
        : isNormalised(target);
    check(valid, "the target of a link is malformed");
    return target;
  };
}

function extentReader(
  message: FilesMessage,
  layerSize: number,
): (count: number, size: number) => Extent[] {
  let next = 0;
  let archiveEnd = 0;
  return (count, size) => {
    check(next + count <= message.extentGaps.length, "there are too few extents");
    const extents: Extent[] = [];
    for (let end = 0; count > 0; count--, next++) {
      const fileOffset = end + narrow(message.extentGaps[next]);
      end = size - narrow(message.extentRemainders[next]);
      const archiveOffset = blockEnd(archiveEnd) + narrow(message.extentSteps[next]);
      archiveEnd = archiveOffset + end - fileOffset;
      check(fileOffset < end && end <= size, "an extent is not within its file");
      check(archiveOffset >= 0 && archiveEnd <= layerSize, "an extent is not within the layer");
      extents.push({ fileOffset, archiveOffset, length: end - fileOffset });
    }
    return extents;
  };
}

function addDevices(entries: TarEntry[], devices: FilesMessage["devices"]): void {
  let number = 0;
  for (const { entryStep, major, minor } of devices) {
    number += entryStep;
    const entry = entries[number];
    check(entry !== undefined && isDevice(entry.type), "a device number belongs to no device");
    check(major <= deviceMajorMax && minor <= deviceMinorMax, "a device number is out of range");
    entry.deviceMajor = major;
    entry.deviceMinor = minor;
  }
}

function addAttributes(entries: TarEntry[], attributes: FilesMessage["attributes"]): void {
  let number = 0;
  let bytes = 0;
  for (const { entryStep, name, value } of attributes) {
    number += entryStep;
    bytes = entryStep > 0 ? 0 : bytes;
    bytes += name.length + value.length;
    checkLimit(bytes, xattrBytesMax, "the length of an entry's attributes");
    const entry = entries[number];
    check(entry !== undefined, "an attribute belongs to no entry");
    check(name.length > 0, "an attribute has no name");
    const attribute: Xattr = { name: Buffer.from(name), value: Buffer.from(value) };
    entry.xattrs.push(attribute);
  }
}

// No leading, trailing or doubled slash, no component "." or "..", no zero byte.
function isNormalised(path: Buffer): boolean {
  const slash = 0x2f;
  const dot = 0x2e;
  let start = 0;
  for (let at = 0; at <= path.length; at++) {
    const byte = at === path.length ? slash : path[at];
    if (byte === 0) return false;
    if (byte !== slash) continue;
    const length = at - start;
    const isDot =
      path[start] === dot && (length === 1 || (length === 2 && path[start + 1] === dot));
    if (length > nameBytesMax || isDot || (length === 0 && path.length > 0)) return false;
    start = at + 1;
  }
  return true;
}

function sharedBytes(before: Buffer, path: Buffer): number {
  const most = Math.min(before.length, path.length);
  let shared = 0;
  while (shared < most && before[shared] === path[shared]) shared++;
  return shared;
}

function blockEnd(offset: number): number {
  return Math.ceil(offset / 512) * 512;
}

function isLink(type: EntryType): boolean {
  return type === "symlink" || type === "hardlink";
}

function isDevice(type: EntryType): boolean {
  return type === "char" || type === "block";
}
