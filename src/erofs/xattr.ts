/** Extended attributes as they stand behind an inode. */
import type { Xattr } from "../tar/entry.ts";
import { ClipError } from "../base/errors.ts";
import { xattrEntry, xattrEntryBytes, xattrHeaderBytes, type InodeType } from "./format.ts";

/** Name prefixes that the format abbreviates to a number. Names that have none do not exist. */
const prefixes = [
  { index: 1, prefix: "user." },
  { index: 2, prefix: "system.posix_acl_access" },
  { index: 3, prefix: "system.posix_acl_default" },
  { index: 4, prefix: "trusted." },
  { index: 6, prefix: "security." },
] as const;

const noBytes = Buffer.alloc(0);

/** The attribute by which overlayfs knows a directory that hides the ones below it. */
export const opaqueXattr: Xattr = {
  name: Buffer.from("trusted.overlay.opaque"),
  value: Buffer.from("y"),
};

/**
 * The attributes of an archive's entry that reach the file system, as when containerd unpacks it:
 * none in the name space `trusted.`, which is the administrator's and where overlayfs keeps its
 * own marks; `user.` and ACLs only where Linux has them; none that no file system knows.
 */
export function acceptedXattrs(type: InodeType, xattrs: readonly Xattr[]): Xattr[] {
  return xattrs.length === 0 ? [] : xattrs.filter((xattr) => isAccepted(type, xattr.name));
}

/** The bytes behind an inode that hold `xattrs`; none for none. The length is a multiple of 4. */
export function encodeXattrs(xattrs: readonly Xattr[]): Buffer {
  if (xattrs.length === 0) return noBytes;
  const parts = xattrs.map(({ name, value }) => ({ ...abbreviate(name), value }));
  let size = xattrHeaderBytes;
  for (const { suffix, value } of parts) size += entrySize(suffix.length, value.length);
  const bytes = Buffer.alloc(size);
  let at = xattrHeaderBytes;
  for (const { index, suffix, value } of parts) {
    bytes.writeUInt8(suffix.length, at + xattrEntry.nameLength);
    bytes.writeUInt8(index, at + xattrEntry.nameIndex);
    bytes.writeUInt16LE(value.length, at + xattrEntry.valueLength);
    suffix.copy(bytes, at + xattrEntryBytes);
    value.copy(bytes, at + xattrEntryBytes + suffix.length);
    at += entrySize(suffix.length, value.length);
  }
  return bytes;
}

/**
 * Reads what {@link encodeXattrs} wrote; names and values are copies.
 * @throws ClipError CORRUPT_EROFS
 */
export function decodeXattrs(bytes: Buffer): Xattr[] {
  const xattrs: Xattr[] = [];
  if (bytes.length === 0) return xattrs;
  let at = xattrHeaderBytes;
  while (at + xattrEntryBytes <= bytes.length) {
    const nameLength = bytes.readUInt8(at + xattrEntry.nameLength);
    const valueLength = bytes.readUInt16LE(at + xattrEntry.valueLength);
    const nameIndex = bytes.readUInt8(at + xattrEntry.nameIndex);
    const prefix = prefixes.find(({ index }) => index === nameIndex)?.prefix;
    const nameEnd = at + xattrEntryBytes + nameLength;
    if (prefix === undefined || nameEnd + valueLength > bytes.length) break;
    xattrs.push({
      name: Buffer.concat([Buffer.from(prefix), bytes.subarray(nameEnd - nameLength, nameEnd)]),
      value: Buffer.from(bytes.subarray(nameEnd, nameEnd + valueLength)),
    });
    at += entrySize(nameLength, valueLength);
  }
  if (at !== bytes.length) {
    throw new ClipError("CORRUPT_EROFS", "the extended attributes of an inode are damaged");
  }
  return xattrs;
}

function isAccepted(type: InodeType, name: Buffer): boolean {
  const text = name.toString("latin1");
  if (text.length > 255 || text.includes("\0")) return false;
  if (text.startsWith("security.")) return text.length > "security.".length;
  if (text.startsWith("user.")) {
    return text.length > "user.".length && (type === "file" || type === "directory");
  }
  if (text === "system.posix_acl_access") return type !== "symlink";
  return text === "system.posix_acl_default" && type === "directory";
}

function abbreviate(name: Buffer): { index: number; suffix: Buffer } {
  const text = name.toString("latin1");
  const found = prefixes.find(({ prefix }) => text.startsWith(prefix));
  if (found === undefined) throw new Error(`an attribute without a known prefix: ${text}`);
  return { index: found.index, suffix: name.subarray(found.prefix.length) };
}

function entrySize(nameLength: number, valueLength: number): number {
  return Math.ceil((xattrEntryBytes + nameLength + valueLength) / 4) * 4;
}
