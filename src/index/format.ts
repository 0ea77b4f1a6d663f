/** The layout of an encoded layer index: a fixed beginning, the head, the sections. */
import { type Digest, digestBytes, digestFromBytes, digestOf } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import {
  indexBytesMax,
  indexHeadBytesMax,
  indexSectionBytesMax,
  layerBytesMax,
} from "../base/limits.ts";
import {
  encodings,
  type Packed,
  type PackedWindow,
  packSection,
  packWindow,
  unpack,
} from "./compression.ts";
import { check, checkLimit } from "./failure.ts";
import { encodeFileTable } from "./file-table.ts";
import { headCodec, narrow, type SectionMessage } from "./messages.ts";
import type { LayerIndex } from "./model.ts";
import { encodeSpans } from "./spans.ts";

/** Bytes before the head. */
const preambleBytes = 16;

const magic = Buffer.from("clipidx\0");
const version = 1;
/** The spans are decoded in the main thread; as many as there may be take less. */
const spansBytesMax = 64 * 1024 * 1024;

/** A section, and where it stands in the index. */
export interface Section {
  offset: number;
  storedLength: number;
  length: number;
  encoding: number;
  digest: Digest;
}

/** The decoded head. */
export interface IndexHead {
  layerDigest: Digest;
  diffId: Digest;
  compressedSize: number;
  uncompressedSize: number;
  spans: Section;
  files: Section;
  windows: Section;
  /** Bytes of the whole index. */
  size: number;
}

/** The bytes of a layer index, as they are stored and published. */
export function encodeLayerIndex({ windows, ...rest }: LayerIndex): Buffer {
  return encodePackedIndex({ ...rest, windows: windows.map(packWindow) });
}

/** A layer index whose windows have been packed one by one, so that they take less memory. */
export type PackedLayerIndex = Omit<LayerIndex, "windows"> & { windows: PackedWindow[] };

/** As {@link encodeLayerIndex}. */
export function encodePackedIndex({ head, entries, windows }: PackedLayerIndex): Buffer {
  const spans = encodeSpans(head.spans, windows);
  const sections = {
    spans: pack(spans.spans),
    files: pack(encodeFileTable(entries)),
    windows: stored(spans.windows),
  };
  const headBytes = headCodec.encode({
    layerDigest: digestBytes(head.layerDigest),
    diffId: digestBytes(head.diffId),
    compressedSize: head.compressedSize,
    uncompressedSize: head.uncompressedSize,
    spans: sections.spans.message,
    files: sections.files.message,
    windows: sections.windows.message,
  });
  const numbers = Buffer.alloc(8);
  numbers.writeUInt32LE(version, 0);
  numbers.writeUInt32LE(headBytes.length, 4);
  const parts = Object.values(sections).map(({ bytes }) => bytes);
  return Buffer.concat([magic, numbers, headBytes, ...parts]);
}

/**
 * How many bytes the preamble and the head take, as the preamble says.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED
 */
export function decodePreamble(bytes: Buffer): number {
  check(bytes.length >= preambleBytes && bytes.subarray(0, 8).equals(magic), "it has no beginning");
  const found = bytes.readUInt32LE(8);
  if (found !== version) {
    throw new ClipError("CORRUPT_INDEX", `layer index of version ${found}, not ${version}`, {
      hint: "Upgrade clip, or create the index again.",
    });
  }
  const length = bytes.readUInt32LE(12);
  checkLimit(length, indexHeadBytesMax, "the length of the head");
  return preambleBytes + length;
}

/**
 * Decodes the preamble and the head.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED
 */
export function decodeHead(bytes: Buffer): IndexHead {
  const message = headCodec.decode(bytes.subarray(preambleBytes));
  const { layerDigest, diffId } = message;
  check(layerDigest.length === 32 && diffId.length === 32, "a digest has an impossible length");
  let offset = bytes.length;
  const place = (
    section: SectionMessage | null | undefined,
    bytesMax = indexSectionBytesMax,
  ): Section => {
    check(section != null && section.digest.length === 32, "a section is missing");
    const storedLength = narrow(section.storedLength);
    const placed = {
      offset,
      storedLength,
      length: narrow(section.length),
      encoding: section.encoding,
      digest: digestFromBytes(section.digest),
    };
    checkLimit(placed.length, bytesMax, "the length of a section");
    checkLimit(storedLength, bytesMax, "the length of a section");
    offset += storedLength;
    return placed;
  };
  const head = {
    layerDigest: digestFromBytes(layerDigest),
    diffId: digestFromBytes(diffId),
    compressedSize: narrow(message.compressedSize),
    uncompressedSize: narrow(message.uncompressedSize),
    spans: place(message.spans, spansBytesMax),
    files: place(message.files),
    windows: place(message.windows),
    size: offset,
  };
  checkLimit(head.compressedSize, layerBytesMax, "the size of the layer");
  checkLimit(head.uncompressedSize, layerBytesMax, "the size of the layer");
  checkLimit(head.size, indexBytesMax, "the size of the index");
  const isStored = head.windows.encoding === encodings.stored;
  check(isStored, "the section of the windows is compressed as a whole");
  return head;
}

/**
 * The content of a section that stands in the index as `bytes`.
 * @throws ClipError CORRUPT_INDEX
 */
export function openSection(bytes: Buffer, { digest, encoding, length }: Section): Buffer {
  check(digestOf(bytes) === digest, "a section does not match its digest");
  return unpack({ bytes, encoding }, length);
}

interface PackedSection {
  bytes: Buffer;
  message: SectionMessage;
}

function pack(plain: Buffer): PackedSection {
  return describe(packSection(plain), plain.length);
}

function stored(bytes: Buffer): PackedSection {
  return describe({ bytes, encoding: encodings.stored }, bytes.length);
}

function describe({ bytes, encoding }: Packed, length: number): PackedSection {
  const digest = digestBytes(digestOf(bytes));
  return { bytes, message: { storedLength: bytes.length, length, encoding, digest } };
}
