/** Requests and layers for tests. */
import type { FuseLayer } from "./layer.ts";
import type { HandlerState, ServedLayer } from "./nodes.ts";
import { requestHeaderBytes } from "./protocol.ts";
import type { LayerTree, TreeEntry, TreeInode } from "./tree.ts";

/** A request of the kernel. */
export function makeRequest(
  opcode: number,
  nodeId: number | bigint,
  body: Buffer = Buffer.alloc(0),
  unique = 42n,
): Buffer {
  const request = Buffer.alloc(requestHeaderBytes + body.length);
  request.writeUInt32LE(request.length, 0);
  request.writeUInt32LE(opcode, 4);
  request.writeBigUInt64LE(unique, 8);
  request.writeBigUInt64LE(BigInt(nodeId), 16);
  request.writeUInt32LE(4711, 32);
  body.copy(request, requestHeaderBytes);
  return request;
}

/** Body of READ, READDIR and READDIRPLUS. */
export function readBody(offset: number | bigint, size: number): Buffer {
  const body = Buffer.alloc(40);
  body.writeBigUInt64LE(BigInt(offset), 8);
  body.writeUInt32LE(size, 16);
  return body;
}

/** Body of GETXATTR, or of LISTXATTR without a name. */
export function xattrBody(size: number, name?: string): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt32LE(size, 0);
  return name === undefined ? body : Buffer.concat([body, Buffer.from(`${name}\0`)]);
}

/** A name as the body of LOOKUP. */
export function nameBody(name: string): Buffer {
  return Buffer.from(`${name}\0`);
}

/** A layer of which all or no spans are present. */
export function makeLayer(options: {
  number?: number;
  size: number;
  spanBytes: number;
  present: boolean;
  dataPath?: string;
  image?: SharedArrayBuffer;
}): FuseLayer {
  const { size, spanBytes } = options;
  const spans = Math.ceil(size / spanBytes);
  const spanStarts = new Float64Array(new SharedArrayBuffer(8 * (spans + 1)));
  for (let span = 0; span <= spans; span++) spanStarts[span] = Math.min(span * spanBytes, size);
  const spanPresent = new Uint8Array(new SharedArrayBuffer(spans)).fill(options.present ? 1 : 0);
  return {
    number: options.number ?? 1,
    size,
    dataPath: options.dataPath ?? "",
    spanStarts,
    spanPresent,
    ...(options.image && { tree: { image: options.image } }),
  };
}

/** Handler state whose data files all hold {@link patternAt}. */
export function makeState(layers: ServedLayer[], noOpen = false): HandlerState {
  return {
    layers: new Map(layers.map((served) => [served.layer.number, served])),
    rootModified: { seconds: 1000, nanoseconds: 1 },
    noOpen,
    readLocal: (_layer, offset, target) => {
      patternAt(offset, target.length).copy(target);
      return true;
    },
  };
}

/** Bytes that tell where they stand. */
export function patternAt(offset: number, length: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, at) => ((offset + at) * 31) >>> 3));
}

/**
 * A small tree: a directory with nid 36 that holds the file `data` (nid 40: 512 bytes of the blob
 * from 1024 on, a hole of 512, 88 bytes from 4096 on), the symlink `link` (nid 41) and many names.
 */
export const smallTree: LayerTree = makeSmallTree();

function makeSmallTree(): LayerTree {
  const inode = (mode: number, size: number): TreeInode => ({
    mode,
    size,
    links: 1,
    uid: 70_000,
    gid: 3,
    device: 0,
    modifiedSeconds: -5,
    modifiedNanoseconds: 123_456_789,
  });
  const inodes = new Map([
    [36, inode(0o40755, 512)],
    [40, inode(0o104755, 1112)],
    [41, inode(0o120777, 6)],
  ]);
  const entries: TreeEntry[] = [
    { name: Buffer.from("."), nid: 36, type: 4 },
    { name: Buffer.from(".."), nid: 36, type: 4 },
    { name: Buffer.from("data"), nid: 40, type: 8 },
    { name: Buffer.from("link"), nid: 41, type: 10 },
    ...Array.from({ length: 100 }, (_, at) => ({
      name: Buffer.from(`name-${at}`),
      nid: 40,
      type: 8,
    })),
  ];
  return {
    rootNid: 36,
    inode(nid) {
      const found = inodes.get(nid);
      if (found === undefined) throw new Error("there is no such inode");
      return found;
    },
    lookup: (_nid, name) => entries.find((entry) => entry.name.equals(name))?.nid,
    entries: (_nid, first) => entries.slice(first),
    readlink: () => Buffer.from("target"),
    xattrs: (nid) =>
      nid === 40 ? [{ name: Buffer.from("user.a"), value: Buffer.from([0, 1, 255]) }] : [],
    segments(_nid, offset, length) {
      const runs = [
        { fileOffset: 0, blobOffset: 1024, length: 512 },
        { fileOffset: 512, blobOffset: undefined, length: 512 },
        { fileOffset: 1024, blobOffset: 4096, length: 88 },
      ];
      return runs.flatMap((run) => {
        const start = Math.max(offset, run.fileOffset);
        const end = Math.min(offset + length, run.fileOffset + run.length);
        if (start >= end) return [];
        const blobOffset =
          run.blobOffset === undefined ? undefined : run.blobOffset + start - run.fileOffset;
        return [{ blobOffset, length: end - start }];
      });
    },
  };
}
