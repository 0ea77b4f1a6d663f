/** Requests and layers for tests. */
import { digestOf } from "../base/digest.ts";
import { ErofsReader } from "../erofs/reader.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import type { TarEntry } from "../tar/entry.ts";
import type { FuseLayer } from "./layer.ts";
import type { HandlerState, ServedLayer } from "./nodes.ts";
import { requestHeaderBytes } from "./protocol.ts";

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
 * A small tree over a blob of 10,000 bytes: the file `data` (512 bytes of the blob from 1024 on, a
 * hole of 512, 88 bytes from 4096 on), the symlink `link`, and a hundred empty files.
 */
export function makeSmallTree(): ErofsReader {
  const entry = (name: string, more: Partial<TarEntry>): TarEntry => ({
    path: Buffer.from(name),
    type: "file",
    mode: 0o4755,
    uid: 70_000,
    gid: 3,
    mtimeSeconds: -5,
    mtimeNanoseconds: 123_456_789,
    size: 0,
    extents: [],
    linkTarget: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    ...more,
  });
  const extents = [
    { fileOffset: 0, archiveOffset: 1024, length: 512 },
    { fileOffset: 1024, archiveOffset: 4096, length: 88 },
  ];
  const xattrs = [{ name: Buffer.from("user.a"), value: Buffer.from([0, 1, 255]) }];
  const entries = [
    entry("data", { size: 1112, extents, xattrs }),
    entry("link", { type: "symlink", mode: 0o777, linkTarget: Buffer.from("target") }),
    ...Array.from({ length: 100 }, (_, at) => entry(`name-${at}`, {})),
  ];
  const diffId = digestOf(Buffer.alloc(0));
  return new ErofsReader(buildErofsImage(entries, { blobSize: 10_000, diffId }).image);
}
