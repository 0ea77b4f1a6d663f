/**
 * The structures of the FUSE kernel protocol, as in Linux's uapi `linux/fuse.h`, versions 7.31 to
 * 7.45: requests are decoded with every length checked, replies are written into a buffer. Nothing
 * here does I/O. All integers are little-endian, as on every machine that clip runs on.
 */

/** nodeid of the root directory (FUSE_ROOT_ID). */
export const rootNodeId = 1;

/** The oldest kernel protocol that is served: Linux 5.4. */
export const protocolMinorMin = 31;
/** The newest that is claimed; what lies beyond is negotiated by flags only. */
const protocolMinorMax = 41;

/** Most bytes of one READ or its reply. */
export const readBytesMax = 1024 * 1024;

/** sizeof(struct fuse_in_header). */
export const requestHeaderBytes = 40;
/** sizeof(struct fuse_out_header). */
export const replyHeaderBytes = 16;

/**
 * What the kernel must be offered to read a request into: header, struct fuse_write_in and
 * max_write (which it takes to be at least a page), and room for a setxattr of 64 KiB.
 */
export const requestBytesMax = 128 * 1024;

/** FOPEN_* flags of an OPEN reply. */
export const openFlag = { DIRECT_IO: 1 << 0, KEEP_CACHE: 1 << 1, CACHE_DIR: 1 << 3 } as const;

/** FUSE_* flags of INIT; those from bit 32 on travel in `flags2`. */
const initFlag = {
  ASYNC_READ: 1n << 0n,
  AUTO_INVAL_DATA: 1n << 12n,
  DO_READDIRPLUS: 1n << 13n,
  ASYNC_DIO: 1n << 15n,
  NO_OPEN_SUPPORT: 1n << 17n,
  PARALLEL_DIROPS: 1n << 18n,
  MAX_PAGES: 1n << 22n,
  CACHE_SYMLINKS: 1n << 23n,
  NO_OPENDIR_SUPPORT: 1n << 24n,
  INIT_EXT: 1n << 30n,
  HAS_RESEND: 1n << 39n,
} as const;

/**
 * What is asked of the kernel. These are constants on purpose: a process that takes a session over
 * sees no INIT, so it has to want what its predecessor wanted.
 */
const wantedFlags = Object.values(initFlag).reduce((all, flag) => all | flag, 0n);
// Reads that wait long, for one layer, must not keep those of other layers from being asked for.
const maxBackground = 8_192;
const congestionThreshold = 6_144;
// The kernel takes the smaller of this and what it has; it must not undercut the bdi's setting.
const maxReadahead = 64 * 1024 * 1024;
const maxWrite = 4096;
const pageBytes = 4096;

/** struct fuse_in_header. */
export interface RequestHeader {
  opcode: number;
  unique: bigint;
  /** Which inode; NaN if it is above 2^53, which this server never hands out. */
  nodeId: number;
  /** Thread that caused the request, as the mount's pid namespace sees it; 0 if it does not. */
  threadId: number;
}

/** Decodes the header of a request; undefined if the bytes are not one request. */
export function decodeHeader(request: Buffer): RequestHeader | undefined {
  if (request.length < requestHeaderBytes) return undefined;
  if (request.readUInt32LE(0) !== request.length) return undefined;
  return {
    opcode: request.readUInt32LE(4),
    unique: request.readBigUInt64LE(8),
    nodeId: getUint64(request, 16),
    threadId: request.readUInt32LE(32),
  };
}

/** The NUL-terminated name that makes up the body of LOOKUP, undefined if it is not one. */
export function decodeName(request: Buffer, at = requestHeaderBytes): Buffer | undefined {
  const end = request.indexOf(0, at);
  return end < at ? undefined : request.subarray(at, end);
}

/** struct fuse_read_in, also the body of READDIR and READDIRPLUS. */
export interface ReadBody {
  offset: number;
  size: number;
}

/** Decodes struct fuse_read_in; undefined if it is cut off or beyond 2^53. */
export function decodeRead(request: Buffer): ReadBody | undefined {
  if (request.length < requestHeaderBytes + 20) return undefined;
  const offset = getUint64(request, requestHeaderBytes + 8);
  if (Number.isNaN(offset)) return undefined;
  return { offset, size: request.readUInt32LE(requestHeaderBytes + 16) };
}

/** struct fuse_open_in: the flags of open(2); undefined if it is cut off. */
export function decodeOpenFlags(request: Buffer): number | undefined {
  if (request.length < requestHeaderBytes + 4) return undefined;
  return request.readUInt32LE(requestHeaderBytes);
}

/** struct fuse_getxattr_in and the name behind it (none for LISTXATTR); undefined if cut off. */
export function decodeGetXattr(request: Buffer): { size: number; name: Buffer } | undefined {
  if (request.length < requestHeaderBytes + 8) return undefined;
  const name = decodeName(request, requestHeaderBytes + 8) ?? Buffer.alloc(0);
  return { size: request.readUInt32LE(requestHeaderBytes), name };
}

/** struct fuse_interrupt_in: which request is interrupted; undefined if it is cut off. */
export function decodeInterrupt(request: Buffer): bigint | undefined {
  if (request.length < requestHeaderBytes + 8) return undefined;
  return request.readBigUInt64LE(requestHeaderBytes);
}

/** What INIT offers: struct fuse_init_in. */
export interface InitBody {
  major: number;
  minor: number;
  /** FUSE_* flags, both words. */
  flags: bigint;
}

/** Decodes struct fuse_init_in, which was shorter before 7.36; undefined if it is cut off. */
export function decodeInit(request: Buffer): InitBody | undefined {
  if (request.length < requestHeaderBytes + 16) return undefined;
  let flags = BigInt(request.readUInt32LE(requestHeaderBytes + 12));
  const extended = (flags & initFlag.INIT_EXT) !== 0n;
  if (extended && request.length >= requestHeaderBytes + 20) {
    flags |= BigInt(request.readUInt32LE(requestHeaderBytes + 16)) << 32n;
  }
  return {
    major: request.readUInt32LE(requestHeaderBytes),
    minor: request.readUInt32LE(requestHeaderBytes + 4),
    flags,
  };
}

/** Writes struct fuse_init_out behind the header; returns its length. */
export function putInit(out: Buffer, offered: InitBody): number {
  const at = replyHeaderBytes;
  const flags = wantedFlags & offered.flags;
  out.fill(0, at, at + 64);
  out.writeUInt32LE(7, at);
  out.writeUInt32LE(Math.min(offered.minor, protocolMinorMax), at + 4);
  out.writeUInt32LE(maxReadahead, at + 8);
  out.writeUInt32LE(Number(flags & 0xffff_ffffn), at + 12);
  out.writeUInt16LE(maxBackground, at + 16);
  out.writeUInt16LE(congestionThreshold, at + 18);
  out.writeUInt32LE(maxWrite, at + 20);
  out.writeUInt32LE(1, at + 24); // time_gran: nanoseconds
  out.writeUInt16LE(readBytesMax / pageBytes, at + 28);
  out.writeUInt32LE(Number(flags >> 32n), at + 32);
  return 64;
}

/** Writes struct fuse_out_header; `error` is a positive errno, or 0 for `bodyBytes` of body. */
export function putReplyHeader(
  out: Buffer,
  unique: bigint,
  error: number,
  bodyBytes: number,
): number {
  out.writeUInt32LE(replyHeaderBytes + bodyBytes, 0);
  out.writeInt32LE(error === 0 ? 0 : -error, 4);
  out.writeBigUInt64LE(unique, 8);
  return replyHeaderBytes + bodyBytes;
}

/** What stat(2) shows of an inode. */
export interface Attributes {
  nodeId: number;
  size: number;
  /** Type and permission bits. */
  mode: number;
  links: number;
  uid: number;
  gid: number;
  /** Device number of a device node, as the kernel encodes it in 32 bits. */
  device: number;
  modifiedSeconds: number;
  modifiedNanoseconds: number;
}

const attributeBytes = 88;
/** sizeof(struct fuse_entry_out). */
export const entryBytes = 40 + attributeBytes;
/** sizeof(struct fuse_dirent) without the name. */
const direntHeaderBytes = 24;

/** Writes struct fuse_attr_out behind the header; returns its length. */
export function putAttributesReply(out: Buffer, attributes: Attributes, seconds: number): number {
  const at = replyHeaderBytes;
  putUint64(out, at, seconds);
  putUint64(out, at + 8, 0);
  putAttributes(out, at + 16, attributes);
  return 16 + attributeBytes;
}

/** How long the kernel may keep what an entry says, in seconds. */
export interface EntryValidity {
  name: number;
  attributes: number;
}

/** Writes struct fuse_entry_out at `at`; returns its length. */
export function putEntry(
  out: Buffer,
  at: number,
  attributes: Attributes,
  validity: EntryValidity,
): number {
  putUint64(out, at, attributes.nodeId);
  putUint64(out, at + 8, 0); // generation: a nodeid never comes to mean another inode
  putUint64(out, at + 16, validity.name);
  putUint64(out, at + 24, validity.attributes);
  putUint64(out, at + 32, 0);
  putAttributes(out, at + 40, attributes);
  return entryBytes;
}

/** Writes the struct fuse_entry_out of a name that does not exist and will not come to. */
export function putNegativeEntry(out: Buffer, at: number, seconds: number): number {
  out.fill(0, at, at + entryBytes);
  putUint64(out, at + 16, seconds);
  return entryBytes;
}

/** One entry of a directory, as READDIR reports it. */
export interface DirectoryEntry {
  name: Buffer;
  /** st_ino. */
  inode: number;
  /** DT_* type: bits 12 to 15 of the mode. */
  type: number;
  /** Cookie from which the reading goes on behind this entry. */
  next: number;
}

/** Bytes of struct fuse_dirent with its name, padded to 8. */
export function direntBytes(name: Buffer): number {
  return (direntHeaderBytes + name.length + 7) & ~7;
}

/** Writes struct fuse_dirent at `at`; returns its length. */
export function putDirent(out: Buffer, at: number, entry: DirectoryEntry): number {
  const length = direntBytes(entry.name);
  putUint64(out, at, entry.inode);
  putUint64(out, at + 8, entry.next);
  out.writeUInt32LE(entry.name.length, at + 16);
  out.writeUInt32LE(entry.type, at + 20);
  entry.name.copy(out, at + direntHeaderBytes);
  out.fill(0, at + direntHeaderBytes + entry.name.length, at + length);
  return length;
}

/** Writes struct fuse_open_out behind the header; returns its length. */
export function putOpen(out: Buffer, flags: number): number {
  out.fill(0, replyHeaderBytes, replyHeaderBytes + 16);
  out.writeUInt32LE(flags, replyHeaderBytes + 8);
  return 16;
}

/** Writes struct fuse_statfs_out behind the header: nothing to allot; returns its length. */
export function putStatfs(out: Buffer): number {
  out.fill(0, replyHeaderBytes, replyHeaderBytes + 80);
  out.writeUInt32LE(pageBytes, replyHeaderBytes + 40); // bsize
  out.writeUInt32LE(255, replyHeaderBytes + 44); // namelen
  out.writeUInt32LE(pageBytes, replyHeaderBytes + 48); // frsize
  return 80;
}

/** Writes struct fuse_getxattr_out behind the header: how long the value is; returns its length. */
export function putXattrSize(out: Buffer, size: number): number {
  out.writeUInt32LE(size, replyHeaderBytes);
  out.writeUInt32LE(0, replyHeaderBytes + 4);
  return 8;
}

/** FUSE_NOTIFY_RESEND: the kernel sends again what an earlier reader took and did not answer. */
export function encodeResend(): Buffer {
  const FUSE_NOTIFY_RESEND = 7;
  const message = Buffer.alloc(replyHeaderBytes);
  message.writeUInt32LE(message.length, 0);
  message.writeInt32LE(FUSE_NOTIFY_RESEND, 4);
  return message;
}

function putAttributes(out: Buffer, at: number, attributes: Attributes): void {
  const { size, modifiedSeconds, modifiedNanoseconds } = attributes;
  putUint64(out, at, attributes.nodeId);
  putUint64(out, at + 8, size);
  putUint64(out, at + 16, Math.ceil(size / 512));
  // A layer has one time only; EROFS shows it as all three, too.
  for (let time = 0; time < 3; time++) {
    out.writeBigInt64LE(BigInt(modifiedSeconds), at + 24 + 8 * time);
    out.writeUInt32LE(modifiedNanoseconds, at + 48 + 4 * time);
  }
  out.writeUInt32LE(attributes.mode, at + 60);
  out.writeUInt32LE(attributes.links, at + 64);
  out.writeUInt32LE(attributes.uid, at + 68);
  out.writeUInt32LE(attributes.gid, at + 72);
  out.writeUInt32LE(attributes.device, at + 76);
  out.writeUInt32LE(pageBytes, at + 80);
  out.writeUInt32LE(0, at + 84);
}

function getUint64(from: Buffer, at: number): number {
  const value = from.readUInt32LE(at + 4) * 2 ** 32 + from.readUInt32LE(at);
  return value <= Number.MAX_SAFE_INTEGER ? value : Number.NaN;
}

function putUint64(to: Buffer, at: number, value: number): void {
  to.writeUInt32LE(value % 2 ** 32, at);
  to.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4);
}
