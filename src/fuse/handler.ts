/**
 * Answers requests of the kernel. A pure function of the request's bytes and of the layers, apart
 * from reading local data through `readLocal`; so it can be tested without a
 * kernel, and whatever bytes it gets, it answers and never throws.
 */
import { constants } from "node:os";
import { ClipError } from "../base/errors.ts";
import { handleDirectory } from "./directory.ts";
import { parseRootName, readIfPresent, type FuseLayer } from "./layer.ts";
import {
  blobAttributes,
  findNode,
  forever,
  rootAttributes,
  rootEntryAttributes,
  rootValidity,
  treeAttributes,
  treeValidity,
  type FoundNode,
  type HandlerState,
} from "./nodes.ts";
import { opcode } from "./opcodes.ts";
import { fail, reply, type Call, type Outcome, type Segment } from "./outcome.ts";
import * as protocol from "./protocol.ts";

const { errno } = constants;

/** O_ACCMODE of open(2). */
const accessModeMask = 3;

const silent: Outcome = { kind: "silent" };

/** Answers `request` in `out`, which has `replyBytesMax` bytes. Never throws. */
export function handle(request: Buffer, state: HandlerState, out: Buffer): Outcome {
  const header = protocol.decodeHeader(request);
  if (header === undefined) return handleGarbled(request, out);
  try {
    return dispatch({ ...header, request, state, out });
  } catch (error) {
    return { ...fail({ ...header, out }, errno.EIO), fault: error };
  }
}

function dispatch(call: Call): Outcome {
  switch (call.opcode) {
    case opcode.INIT:
      return initialize(call);
    case opcode.LOOKUP:
      return lookup(call);
    case opcode.GETATTR:
      return getAttributes(call);
    case opcode.READLINK:
      return readLink(call);
    case opcode.OPEN:
      return open(call);
    case opcode.READ:
      return read(call);
    case opcode.READDIR:
    case opcode.READDIRPLUS:
      return handleDirectory(call);
    case opcode.GETXATTR:
    case opcode.LISTXATTR:
      return xattrs(call);
    case opcode.STATFS:
      return reply(call, protocol.putStatfs(call.out));
    case opcode.RELEASE:
    case opcode.RELEASEDIR:
    case opcode.DESTROY:
      return reply(call, 0);
    case opcode.FORGET:
    case opcode.BATCH_FORGET:
    case opcode.NOTIFY_REPLY:
      // nodeids are computed, not remembered, so there is nothing to forget.
      return silent;
    case opcode.INTERRUPT: {
      const target = protocol.decodeInterrupt(call.request);
      return target === undefined ? silent : { kind: "interrupt", target, unique: call.unique };
    }
    case opcode.SETATTR:
    case opcode.SYMLINK:
    case opcode.MKNOD:
    case opcode.MKDIR:
    case opcode.UNLINK:
    case opcode.RMDIR:
    case opcode.RENAME:
    case opcode.RENAME2:
    case opcode.LINK:
    case opcode.WRITE:
    case opcode.SETXATTR:
    case opcode.REMOVEXATTR:
    case opcode.CREATE:
    case opcode.FALLOCATE:
    case opcode.COPY_FILE_RANGE:
    case opcode.TMPFILE:
      return fail(call, errno.EROFS);
    default:
      // ENOSYS makes the kernel do without from then on: OPENDIR (directories are cached), FLUSH,
      // ACCESS (it checks by itself), FSYNC, LSEEK, IOCTL, STATX, locks.
      return fail(call, errno.ENOSYS);
  }
}

function initialize(call: Call): Outcome {
  const offered = protocol.decodeInit(call.request);
  if (offered === undefined) return fail(call, errno.EIO);
  if (offered.major !== 7 || offered.minor < protocol.protocolMinorMin) {
    return fail(call, errno.EPROTO);
  }
  const length = protocol.putReplyHeader(
    call.out,
    call.unique,
    0,
    protocol.putInit(call.out, offered),
  );
  return { kind: "initialized", length, minor: offered.minor };
}

function lookup(call: Call): Outcome {
  const { out, state } = call;
  const name = protocol.decodeName(call.request);
  if (name === undefined) return fail(call, errno.EIO);
  if (call.nodeId === protocol.rootNodeId) {
    // Not cached if it does not exist: its layer may be added the next moment.
    const target = parseRootName(name);
    const served = target === undefined ? undefined : state.layers.get(target.layer);
    if (target === undefined || served === undefined) return fail(call, errno.ENOENT);
    const attributes = rootEntryAttributes(served, target.tree);
    if (attributes === undefined) return fail(call, errno.ENOENT);
    return reply(call, protocol.putEntry(out, protocol.replyHeaderBytes, attributes, rootValidity));
  }
  const found = findNode(state, call.nodeId);
  if (found === undefined) return fail(call, errno.ESTALE);
  if (found.tree === undefined) return fail(call, errno.ENOTDIR);
  if (name.length > 255) return fail(call, errno.ENAMETOOLONG);
  const nid = found.tree.lookup(found.node.inode, name);
  if (nid === undefined) {
    return reply(call, protocol.putNegativeEntry(out, protocol.replyHeaderBytes, forever));
  }
  const attributes = treeAttributes(found.node.layer, found.tree, nid);
  return reply(call, protocol.putEntry(out, protocol.replyHeaderBytes, attributes, treeValidity));
}

function getAttributes(call: Call): Outcome {
  const { out, state } = call;
  if (call.nodeId === protocol.rootNodeId) {
    return reply(call, protocol.putAttributesReply(out, rootAttributes(state), 0));
  }
  const found = findNode(state, call.nodeId);
  if (found === undefined) return fail(call, errno.ESTALE);
  const attributes = found.tree
    ? treeAttributes(found.node.layer, found.tree, found.node.inode)
    : blobAttributes(found.served.layer);
  return reply(call, protocol.putAttributesReply(out, attributes, forever));
}

function readLink(call: Call): Outcome {
  const found = findNode(call.state, call.nodeId);
  if (found === undefined) return fail(call, errno.ESTALE);
  if (found.tree === undefined) return fail(call, errno.EINVAL);
  const target = found.tree.readlink(found.node.inode);
  return reply(call, target.copy(call.out, protocol.replyHeaderBytes));
}

function open(call: Call): Outcome {
  const flags = protocol.decodeOpenFlags(call.request);
  if (flags === undefined) return fail(call, errno.EIO);
  if ((flags & accessModeMask) !== 0) return fail(call, errno.EROFS);
  if (call.state.noOpen) return fail(call, errno.ENOSYS);
  const found = findNode(call.state, call.nodeId);
  if (found === undefined) return fail(call, errno.ESTALE);
  // EROFS caches what it reads from a blob and reads ahead within the file: the blob itself need
  // not be cached a second time.
  const { KEEP_CACHE, DIRECT_IO } = protocol.openFlag;
  return reply(call, protocol.putOpen(call.out, found.tree ? KEEP_CACHE : DIRECT_IO));
}

function read(call: Call): Outcome {
  const { out, state } = call;
  const body = protocol.decodeRead(call.request);
  if (body === undefined || body.size > protocol.readBytesMax) return fail(call, errno.EIO);
  const found = findNode(state, call.nodeId);
  if (found === undefined) return fail(call, errno.ESTALE);
  const { node, served } = found;
  const segments = locate(found, body.offset, body.size);
  let at = protocol.replyHeaderBytes;
  for (const segment of segments) {
    const target = out.subarray(at, at + segment.length);
    if (!readSegment(state, served.layer, segment, target)) {
      const { unique, threadId } = call;
      return { kind: "handover", read: { unique, threadId, layer: node.layer, segments } };
    }
    at += segment.length;
  }
  return reply(call, at - protocol.replyHeaderBytes);
}

/** Where the bytes of a READ are; fewer than asked for at the end of the file. */
function locate(found: FoundNode, offset: number, size: number): Segment[] {
  const { tree, node, served } = found;
  if (tree === undefined) {
    const length = Math.min(size, served.layer.size - offset);
    return length > 0 ? [{ blobOffset: offset, length }] : [];
  }
  const segments = tree.extents(node.inode, offset, size);
  const isOutside = segments.some(
    ({ blobOffset = 0, length }) => blobOffset + length > served.layer.size,
  );
  if (isOutside) throw new ClipError("CORRUPT_EROFS", "a file lies outside its layer blob");
  return segments.map(({ blobOffset, length }) => ({ blobOffset, length }));
}

function readSegment(
  state: HandlerState,
  layer: FuseLayer,
  segment: Segment,
  target: Buffer,
): boolean {
  const { blobOffset, length } = segment;
  if (blobOffset === undefined) {
    target.fill(0);
    return true;
  }
  return readIfPresent(layer, blobOffset, length, () => state.readLocal(layer, blobOffset, target));
}

function xattrs(call: Call): Outcome {
  const { out } = call;
  const body = protocol.decodeGetXattr(call.request);
  if (body === undefined) return fail(call, errno.EIO);
  const listing = call.opcode === opcode.LISTXATTR;
  let answer: Buffer | undefined;
  if (call.nodeId === protocol.rootNodeId) {
    answer = listing ? Buffer.alloc(0) : undefined;
  } else {
    const found = findNode(call.state, call.nodeId);
    if (found === undefined) return fail(call, errno.ESTALE);
    const all = found.tree ? found.tree.xattrs(found.node.inode) : [];
    answer = listing
      ? Buffer.concat(all.flatMap(({ name }) => [name, Buffer.alloc(1)]))
      : all.find(({ name }) => name.equals(body.name))?.value;
  }
  if (answer === undefined) return fail(call, errno.ENODATA);
  if (body.size === 0) return reply(call, protocol.putXattrSize(out, answer.length));
  if (answer.length > body.size) return fail(call, errno.ERANGE);
  return reply(call, answer.copy(out, protocol.replyHeaderBytes));
}

/** Bytes that are not a request: answered if it can be seen which request they claim to be. */
function handleGarbled(request: Buffer, out: Buffer): Outcome {
  if (request.length < 16) return silent;
  return fail({ unique: request.readBigUInt64LE(8), out }, errno.EIO);
}
