/** What extension headers, PAX and GNU, say about the entry that follows them. */
import type { Xattr } from "./entry.ts";
import { xattrBytesMax } from "../base/limits.ts";
import { corrupt, exceeded } from "./failure.ts";
import { parseDecimal, parseTime, type PaxRecord, type PaxTime } from "./pax.ts";
import { runsOfRecords, type SparseRun } from "./sparse.ts";

/** Values that take the place of those in the header block; absent ones leave them as they are. */
export interface Overrides {
  path?: Buffer;
  linkPath?: Buffer;
  size?: number;
  uid?: number;
  gid?: number;
  mtime?: PaxTime;
  xattrs: Xattr[];
  sparse?: PaxSparse;
}

/** What PAX records say of a sparse file. */
export interface PaxSparse {
  /** The map; absent when it stands before the data (1.0). */
  runs?: SparseRun[];
  /** Bytes of the file as a reader sees it; absent when the header's size is meant. */
  realSize?: number;
}

/** The records of global headers, which apply to every entry after them. */
export class GlobalRecords {
  readonly #values = new Map<string, PaxRecord>();
  #bytes = 0;
  #records: readonly PaxRecord[] = [];

  /** The last record of each keyword that can apply to many entries. */
  get records(): readonly PaxRecord[] {
    return this.#records;
  }

  /** @throws ClipError LIMIT_EXCEEDED */
  add(records: readonly PaxRecord[]): void {
    for (const record of records) {
      if (!globalKeyword.test(record.keyword)) continue;
      this.#bytes += bytesOf(record) - bytesOf(this.#values.get(record.keyword));
      this.#values.set(record.keyword, record);
    }
    if (this.#bytes > xattrBytesMax) {
      throw exceeded("the size of global headers", this.#bytes, xattrBytesMax);
    }
    this.#records = [...this.#values.values()];
  }
}

const globalKeyword = /^(?:path|linkpath|size|uid|gid|mtime|SCHILY\.xattr\..*)$/s;

function bytesOf(record: PaxRecord | undefined): number {
  return record === undefined ? 0 : record.keyword.length + record.value.length;
}

/**
 * Reads the records that apply to one entry: the global ones first, then its own.
 *
 * Attributes are taken from `SCHILY.xattr.` alone, as GNU tar and containerd do. libarchive repeats
 * them as `LIBARCHIVE.xattr.`.
 * @throws ClipError CORRUPT_TAR, LIMIT_EXCEEDED
 */
export function overridesOf(
  globalRecords: readonly PaxRecord[],
  records: readonly PaxRecord[],
): Overrides {
  if (globalRecords.length === 0 && records.length === 0) return { xattrs: [] };
  const values = new Map<string, Buffer>();
  // An empty value takes back what stood before it.
  for (const { keyword, value } of [...globalRecords, ...records]) {
    if (value.length > 0 || keyword.startsWith(xattrPrefix)) values.set(keyword, value);
    else values.delete(keyword);
  }
  const overrides: Overrides = { xattrs: xattrsOf(values) };
  const path = values.get("GNU.sparse.name") ?? values.get("path");
  if (path !== undefined) overrides.path = withoutNul(path);
  const linkPath = values.get("linkpath");
  if (linkPath !== undefined) overrides.linkPath = withoutNul(linkPath);
  for (const keyword of ["size", "uid", "gid"] as const) {
    const value = decimal(values, keyword);
    if (value !== undefined) overrides[keyword] = value;
  }
  const mtime = values.get("mtime");
  if (mtime !== undefined) overrides.mtime = parseTime(mtime.toString("latin1"));
  const sparse = sparseOf(values, records);
  if (sparse !== undefined) overrides.sparse = sparse;
  return overrides;
}

const xattrPrefix = "SCHILY.xattr.";

function xattrsOf(values: ReadonlyMap<string, Buffer>): Xattr[] {
  const xattrs: Xattr[] = [];
  let bytes = 0;
  for (const [keyword, value] of values) {
    if (!keyword.startsWith(xattrPrefix)) continue;
    const name = Buffer.from(keyword.slice(xattrPrefix.length), "latin1");
    if (name.length === 0 || name.includes(0)) {
      throw corrupt("an extended attribute has no usable name");
    }
    bytes += name.length + value.length;
    xattrs.push({ name, value });
  }
  if (bytes > xattrBytesMax) {
    throw exceeded("the size of the extended attributes of an entry", bytes, xattrBytesMax);
  }
  return xattrs;
}

function sparseOf(
  values: ReadonlyMap<string, Buffer>,
  records: readonly PaxRecord[],
): PaxSparse | undefined {
  const major = decimal(values, "GNU.sparse.major");
  const minor = decimal(values, "GNU.sparse.minor") ?? 0;
  const realSize = decimal(values, "GNU.sparse.realsize") ?? decimal(values, "GNU.sparse.size");
  const sparse: PaxSparse = realSize === undefined ? {} : { realSize };
  if (major !== undefined && major > 0) {
    if (major !== 1 || minor !== 0) throw corrupt("a sparse file is of an unknown version");
    return sparse;
  }
  const runs = runsOfRecords(records);
  if (runs === undefined) return undefined;
  return { ...sparse, runs };
}

function decimal(values: ReadonlyMap<string, Buffer>, keyword: string): number | undefined {
  const value = values.get(keyword);
  return value === undefined ? undefined : parseDecimal(value.toString("latin1"), keyword);
}

function withoutNul(path: Buffer): Buffer {
  if (path.includes(0)) throw corrupt("a path contains a NUL");
  return path;
}
