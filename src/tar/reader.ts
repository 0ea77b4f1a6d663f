/** Reads a tar archive as a stream and reports its entries without looking at their data. */
import type { TarEntry } from "./entry.ts";
import { ClipError } from "../base/errors.ts";
import {
  layerBytesMax,
  layerEntriesMax,
  layerNamesBytesMax,
  tarExtensionBytesMax,
} from "../base/limits.ts";
import { checkSize, describeEntry, hasData, oldSparseFlag, typeOf } from "./describe.ts";
import { GlobalRecords, overridesOf, type Overrides } from "./extended.ts";
import { corrupt, exceeded } from "./failure.ts";
import { blockBytes, isZeroBlock, parseHeader, type TarHeader } from "./header.ts";
import { parsePaxRecords, type PaxRecord } from "./pax.ts";
import { LeadingSparseMap, OldSparseMap, sparseExtents } from "./sparse.ts";

/** Options of {@link TarReader}. */
export interface TarReaderOptions {
  /** Gets each entry as soon as its headers are complete, before its data. */
  onEntry: (entry: TarEntry) => void;
}

/** What the bytes are that the reader waits for. */
type Stage =
  | { kind: "header" }
  | { kind: "extension"; typeFlag: number; size: number }
  | { kind: "old-sparse"; entry: TarEntry; dataBytes: number; map: OldSparseMap }
  | { kind: "leading-sparse"; entry: TarEntry; dataBytes: number; map: LeadingSparseMap };

const atHeader: Stage = { kind: "header" };
const noBytes = Buffer.alloc(0);

/**
 * A synchronous, header-only reader of tar archives: ustar, V7, GNU, PAX. It takes the archive in
 * chunks of any size, keeps no reference to them, and keeps no more than one header in memory.
 *
 * As Go's reader it takes an archive without end blocks, and ignores what follows them. Errors are
 * CORRUPT_TAR or LIMIT_EXCEEDED, with `offset` (of the header) and `entry` in their context; after
 * one the reader is of no more use.
 */
export class TarReader {
  readonly #onEntry: (entry: TarEntry) => void;
  /** Bytes of the archive taken so far. */
  #offset = 0;
  #stage: Stage = atHeader;
  #wanted = blockBytes;
  #partial: Buffer | undefined;
  #partialBytes = 0;
  /** Where the data of the current entry ends, and where the block ends that it ends in. */
  #dataEnd = 0;
  #paddingEnd = 0;
  #zeroBlocks = 0;
  #entries = 0;
  #namesBytes = 0;
  #headerOffset = 0;
  #entryName: Buffer = noBytes;
  readonly #globals = new GlobalRecords();
  #records: PaxRecord[] = [];
  #recordBytes = 0;
  #longName: Buffer | undefined;
  #longLink: Buffer | undefined;
  #extended = false;

  constructor(options: TarReaderOptions) {
    this.#onEntry = options.onEntry;
  }

  /**
   * Takes the next bytes of the archive.
   * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
   */
  write(chunk: Buffer): void {
    for (let at = 0; at < chunk.length;) {
      const left = chunk.length - at;
      if (this.#zeroBlocks === 2) {
        this.#offset += left;
        return;
      }
      const skip = Math.min(this.#paddingEnd - this.#offset, left);
      if (skip > 0) {
        this.#offset += skip;
        at += skip;
        continue;
      }
      at += this.#collect(chunk, at);
    }
  }

  /**
   * Says that the archive is over.
   * @throws ClipError CORRUPT_TAR when it ends in the middle of something.
   */
  end(): void {
    if (this.#zeroBlocks === 2) return;
    const inHeaders = this.#stage.kind !== "header" || this.#partialBytes > 0 || this.#extended;
    // The padding after the last data may be missing, but not a part of it.
    const inPadding = this.#offset > this.#dataEnd && this.#offset < this.#paddingEnd;
    if (inHeaders || inPadding || this.#offset < this.#dataEnd) {
      throw this.#located(corrupt("the tar archive ends too early"));
    }
  }

  /** Takes bytes towards the block that is awaited; how many it took. */
  #collect(chunk: Buffer, at: number): number {
    const take = Math.min(this.#wanted - this.#partialBytes, chunk.length - at);
    if (this.#partial === undefined && take === this.#wanted) {
      this.#offset += take;
      this.#take(chunk.subarray(at, at + take));
      return take;
    }
    this.#partial ??= Buffer.allocUnsafe(this.#wanted);
    chunk.copy(this.#partial, this.#partialBytes, at, at + take);
    this.#partialBytes += take;
    this.#offset += take;
    if (this.#partialBytes === this.#wanted) {
      const block = this.#partial;
      this.#partial = undefined;
      this.#partialBytes = 0;
      this.#take(block);
    }
    return take;
  }

  #take(block: Buffer): void {
    try {
      const stage = this.#stage;
      switch (stage.kind) {
        case "header":
          this.#takeHeader(block);
          break;
        case "extension":
          this.#takeExtension(stage.typeFlag, block.subarray(0, stage.size));
          this.#await(atHeader);
          break;
        case "old-sparse":
          stage.map.add(block);
          this.#finishOldSparse(stage.entry, stage.dataBytes, stage.map);
          break;
        case "leading-sparse":
          stage.map.add(block);
          this.#finishLeadingSparse(stage.entry, stage.dataBytes, stage.map);
          break;
      }
    } catch (error) {
      throw this.#located(error);
    }
  }

  #await(stage: Stage, bytes = blockBytes): void {
    this.#stage = stage;
    this.#wanted = bytes;
  }

  #takeHeader(block: Buffer): void {
    if (!this.#extended) this.#headerOffset = this.#offset - blockBytes;
    if (isZeroBlock(block)) {
      this.#zeroBlocks++;
      if (this.#extended) throw corrupt("the tar archive ends after an extension header");
      return;
    }
    if (this.#zeroBlocks > 0) throw corrupt("a tar header follows a block of zeros");
    if (!this.#extended) this.#entryName = noBytes;
    const header = parseHeader(block);
    const typeFlag = String.fromCharCode(header.typeFlag);
    switch (typeFlag) {
      case "x":
      case "g":
      case "X":
      case "L":
      case "K":
        return this.#awaitExtension(header);
      case "V":
        return this.#skipData(header.size);
      default:
        this.#entryName = header.name;
        return this.#takeEntry(header, block);
    }
  }

  #awaitExtension(header: TarHeader): void {
    if (header.size < 0) throw corrupt("the size in a tar header is negative");
    if (header.size > tarExtensionBytesMax) {
      throw exceeded("the size of an extension header", header.size, tarExtensionBytesMax);
    }
    this.#extended = true;
    const { typeFlag, size } = header;
    if (size === 0) this.#takeExtension(typeFlag, noBytes);
    else this.#await({ kind: "extension", typeFlag, size }, padded(size));
  }

  #takeExtension(typeFlag: number, data: Buffer): void {
    switch (String.fromCharCode(typeFlag)) {
      case "L":
        this.#longName = untilNul(data);
        this.#entryName = this.#longName;
        break;
      case "K":
        this.#longLink = untilNul(data);
        break;
      case "g":
        this.#globals.add(parsePaxRecords(data));
        // Global records stand for themselves: no entry needs to follow.
        this.#extended =
          this.#records.length > 0 || this.#longName !== undefined || this.#longLink !== undefined;
        break;
      default:
        this.#addRecords(parsePaxRecords(data), data.length);
        break;
    }
  }

  // Any number of extension headers may stand before an entry.
  #addRecords(records: PaxRecord[], bytes: number): void {
    this.#recordBytes += bytes;
    if (this.#recordBytes > tarExtensionBytesMax) {
      throw exceeded("the size of extension headers", this.#recordBytes, tarExtensionBytesMax);
    }
    for (const record of records) this.#records.push(record);
  }

  #takeEntry(header: TarHeader, block: Buffer): void {
    const overrides = overridesOf(this.#globals.records, this.#records);
    const rawName = this.#longName ?? overrides.path ?? header.name;
    const rawLink = this.#longLink ?? overrides.linkPath ?? header.linkName;
    this.#records = [];
    this.#recordBytes = 0;
    this.#longName = undefined;
    this.#longLink = undefined;
    this.#extended = false;
    this.#entryName = rawName;
    if (++this.#entries > layerEntriesMax) {
      throw exceeded("the number of entries", this.#entries, layerEntriesMax);
    }
    const type = typeOf(header.typeFlag, rawName);
    const entry = describeEntry({ type, header, overrides, rawName, rawLink, block });
    // The names so far may be views of a chunk that its owner will use again.
    this.#entryName = entry.path;
    const dataBytes = hasData(header.typeFlag) ? (overrides.size ?? header.size) : 0;
    checkSize(dataBytes);
    this.#takeData(entry, header, overrides, dataBytes, block);
  }

  #takeData(
    entry: TarEntry,
    header: TarHeader,
    overrides: Overrides,
    dataBytes: number,
    block: Buffer,
  ): void {
    if (header.typeFlag === oldSparseFlag) {
      const map = new OldSparseMap(block);
      checkSize(map.realSize);
      entry.size = map.realSize;
      this.#finishOldSparse(entry, dataBytes, map);
    } else if (entry.type === "file" && overrides.sparse !== undefined) {
      const { runs, realSize } = overrides.sparse;
      entry.size = realSize ?? dataBytes;
      checkSize(entry.size);
      if (runs === undefined) {
        this.#finishLeadingSparse(entry, dataBytes, new LeadingSparseMap());
      } else {
        entry.extents = sparseExtents(runs, entry.size, this.#offset, dataBytes);
        this.#finishEntry(entry, dataBytes);
      }
    } else {
      if (entry.type === "file") {
        entry.size = dataBytes;
        if (dataBytes > 0) {
          entry.extents = [{ fileOffset: 0, archiveOffset: this.#offset, length: dataBytes }];
        }
      }
      this.#finishEntry(entry, dataBytes);
    }
  }

  #finishOldSparse(entry: TarEntry, dataBytes: number, map: OldSparseMap): void {
    if (map.continued) return this.#await({ kind: "old-sparse", entry, dataBytes, map });
    entry.extents = sparseExtents(map.runs, entry.size, this.#offset, dataBytes);
    this.#finishEntry(entry, dataBytes);
  }

  #finishLeadingSparse(entry: TarEntry, dataBytes: number, map: LeadingSparseMap): void {
    if (!map.complete) {
      if (map.bytes >= dataBytes) throw corrupt("the map of a sparse file is longer than its data");
      return this.#await({ kind: "leading-sparse", entry, dataBytes, map });
    }
    const rest = Math.max(dataBytes - map.bytes, 0);
    entry.extents = sparseExtents(map.runs, entry.size, this.#offset, rest);
    this.#finishEntry(entry, rest);
  }

  #finishEntry(entry: TarEntry, dataBytes: number): void {
    this.#await(atHeader);
    this.#skipData(dataBytes);
    this.#namesBytes += bytesInMemory(entry);
    if (this.#namesBytes > layerNamesBytesMax) {
      throw exceeded("what the entries say", this.#namesBytes, layerNamesBytesMax);
    }
    this.#onEntry(entry);
  }

  #skipData(dataBytes: number): void {
    checkSize(dataBytes);
    this.#dataEnd = this.#offset + dataBytes;
    this.#paddingEnd = this.#offset + padded(dataBytes);
    if (this.#paddingEnd > layerBytesMax) {
      throw exceeded("the size of the archive", this.#paddingEnd, layerBytesMax);
    }
  }

  #located(error: unknown): unknown {
    if (!(error instanceof ClipError) || "offset" in error.context) return error;
    const entry = printable(this.#entryName);
    const context = { ...error.context, offset: this.#headerOffset, entry };
    const where = `${error.message} (entry "${entry}" at byte ${this.#headerOffset})`;
    return new ClipError(error.code, where, { cause: error.cause, context });
  }
}

/** About what an attribute or an extent takes beside its bytes. */
const objectBytes = 64;

/** Attributes of a global header count for each entry: each has its own list of them. */
function bytesInMemory({ path, linkTarget, xattrs, extents }: TarEntry): number {
  let bytes = path.length + linkTarget.length + objectBytes * (xattrs.length + extents.length);
  for (const { name, value } of xattrs) bytes += name.length + value.length;
  return bytes;
}

function padded(bytes: number): number {
  return Math.ceil(bytes / blockBytes) * blockBytes;
}

function untilNul(data: Buffer): Buffer {
  const nul = data.indexOf(0);
  return Buffer.from(nul === -1 ? data : data.subarray(0, nul));
}

/** A name for messages: not too long, and without control characters. */
function printable(name: Buffer): string {
  return JSON.stringify(name.toString("utf8", 0, 200)).slice(1, -1);
}
