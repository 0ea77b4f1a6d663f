/**
 * Maps of sparse files, in the four forms that GNU tar has written: in the header ("old GNU"), in
 * PAX records (0.0 and 0.1) and before the data (1.0).
 */
import type { Extent } from "./entry.ts";
import { tarExtensionBytesMax } from "../base/limits.ts";
import { corrupt, exceeded } from "./failure.ts";
import { blockBytes, parseNumber } from "./header.ts";
import { parseDecimal, type PaxRecord } from "./pax.ts";

/** A run of data: where it stands in the file, and its length. */
export interface SparseRun {
  offset: number;
  length: number;
}

/** More runs than any real file has: as many as fit into the largest extension. */
const runsMax = tarExtensionBytesMax / 16;

/** Collects the runs of an old GNU sparse header and of the blocks that continue it. */
export class OldSparseMap {
  readonly runs: SparseRun[] = [];
  /** Bytes of the file as a reader sees it. */
  readonly realSize: number;
  #continued: boolean;

  /** @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED */
  constructor(header: Buffer) {
    this.realSize = parseNumber(header, 483, 12, "size of a sparse file");
    this.#read(header, 386, 4);
    this.#continued = header[482] !== 0;
  }

  /** Whether another block of the map follows. */
  get continued(): boolean {
    return this.#continued;
  }

  /**
   * Takes a block that continues the map.
   * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
   */
  add(block: Buffer): void {
    this.#read(block, 0, 21);
    this.#continued = block[504] !== 0;
  }

  #read(block: Buffer, start: number, count: number): void {
    for (let at = start; at < start + count * 24; at += 24) {
      // An unused place ends the map.
      if (block[at] === 0) return;
      this.runs.push({
        offset: parseNumber(block, at, 12, "offset in a sparse map"),
        length: parseNumber(block, at + 12, 12, "length in a sparse map"),
      });
    }
    checkCount(this.runs.length);
  }
}

/** Collects the runs of a map that stands before the data (PAX 1.0). */
export class LeadingSparseMap {
  readonly runs: SparseRun[] = [];
  /** Bytes of the archive that the map has taken so far. */
  bytes = 0;
  #count: number | undefined;
  #offset: number | undefined;
  #digits = "";

  /** Whether the map is complete; what follows it begins with the next block. */
  get complete(): boolean {
    return this.#count !== undefined && this.runs.length === this.#count;
  }

  /**
   * Takes the next block of the data area.
   * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
   */
  add(block: Buffer): void {
    this.bytes += blockBytes;
    for (const byte of block) {
      if (this.complete) return;
      if (byte !== 0x0a) {
        this.#digits += String.fromCharCode(byte);
        if (this.#digits.length > 20) throw corrupt("a sparse map is not made of numbers");
        continue;
      }
      this.#take(parseDecimal(this.#digits, "number in a sparse map"));
      this.#digits = "";
    }
  }

  #take(value: number): void {
    if (this.#count === undefined) {
      checkCount(value);
      this.#count = value;
    } else if (this.#offset === undefined) {
      this.#offset = value;
    } else {
      this.runs.push({ offset: this.#offset, length: value });
      this.#offset = undefined;
    }
  }
}

/**
 * The runs that PAX records of the forms 0.0 and 0.1 list; nothing when they list none.
 * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
 */
export function runsOfRecords(records: readonly PaxRecord[]): SparseRun[] | undefined {
  const numbers: number[] = [];
  let found = false;
  for (const { keyword, value } of records) {
    if (keyword === "GNU.sparse.map") {
      found = true;
      const text = value.toString("latin1");
      if (text !== "") {
        for (const part of text.split(",")) numbers.push(parseDecimal(part, "sparse map"));
      }
    } else if (keyword === "GNU.sparse.offset" || keyword === "GNU.sparse.numbytes") {
      found = true;
      const isLength = keyword === "GNU.sparse.numbytes";
      if ((numbers.length % 2 === 1) !== isLength) throw corrupt("a sparse map is out of order");
      numbers.push(parseDecimal(value.toString("latin1"), "sparse map"));
    }
  }
  if (!found) return undefined;
  if (numbers.length % 2 === 1) throw corrupt("a sparse map ends in the middle of a pair");
  checkCount(numbers.length / 2);
  const runs: SparseRun[] = [];
  for (let at = 0; at < numbers.length; at += 2) {
    runs.push({ offset: numbers[at] ?? 0, length: numbers[at + 1] ?? 0 });
  }
  return runs;
}

/**
 * Where the runs of a sparse file stand in the archive: one after the other from `archiveOffset`.
 * @throws ClipError CORRUPT_TAR when they overlap, leave the file, or are not the data that is there.
 */
export function sparseExtents(
  runs: readonly SparseRun[],
  size: number,
  archiveOffset: number,
  dataBytes: number,
): Extent[] {
  const extents: Extent[] = [];
  let fileEnd = 0;
  let taken = 0;
  for (const { offset, length } of runs) {
    if (offset < fileEnd || length < 0 || offset + length > size) {
      throw corrupt("a sparse map has runs that overlap or leave the file");
    }
    fileEnd = offset + length;
    if (length > 0) {
      extents.push({ fileOffset: offset, archiveOffset: archiveOffset + taken, length });
    }
    taken += length;
  }
  if (taken !== dataBytes) {
    throw corrupt("a sparse map does not fit the data of its file");
  }
  return extents;
}

function checkCount(count: number): void {
  if (count > runsMax) throw exceeded("the number of runs of a sparse file", count, runsMax);
}
