/** Makes tar archives byte by byte, for tests. */
import type { TarEntry } from "./entry.ts";
import { TarReader } from "./reader.ts";

/** What goes into a header block; everything but the name has a default. */
export interface HeaderFields {
  name: string | Buffer;
  /** The type byte. */
  type?: string;
  link?: string | Buffer;
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  mtime?: number;
  magic?: "posix" | "gnu" | "v7";
  prefix?: string;
  deviceMajor?: number;
  deviceMinor?: number;
  /** The last touch before the checksum is made. */
  patch?: (block: Buffer) => void;
}

/** A header block with a right checksum. */
export function header(fields: HeaderFields): Buffer {
  const block = Buffer.alloc(512);
  Buffer.from(fields.name).copy(block, 0, 0, 100);
  octal(block, 100, 8, fields.mode ?? 0o644);
  octal(block, 108, 8, fields.uid ?? 0);
  octal(block, 116, 8, fields.gid ?? 0);
  octal(block, 124, 12, fields.size ?? 0);
  octal(block, 136, 12, fields.mtime ?? 0);
  block.write(fields.type ?? "0", 156, "latin1");
  Buffer.from(fields.link ?? "").copy(block, 157, 0, 100);
  if (fields.magic === "gnu") block.write("ustar  \0", 257, "latin1");
  else if (fields.magic !== "v7") block.write("ustar\x0000", 257, "latin1");
  if (fields.prefix !== undefined) block.write(fields.prefix, 345, 155, "latin1");
  if (fields.deviceMajor !== undefined) octal(block, 329, 8, fields.deviceMajor);
  if (fields.deviceMinor !== undefined) octal(block, 337, 8, fields.deviceMinor);
  fields.patch?.(block);
  checksum(block);
  return block;
}

/** A header block and data. */
export function member(fields: HeaderFields, data: string | Buffer = ""): Buffer {
  const bytes = Buffer.from(data);
  return Buffer.concat([header({ size: bytes.length, ...fields }), padded(bytes)]);
}

/** A PAX extended header, `x` or `g`, of records `[keyword, value]`. */
export function pax(records: readonly (readonly [string, string | Buffer])[], type = "x"): Buffer {
  const body = Buffer.concat(records.map(([keyword, value]) => paxRecord(keyword, value)));
  return member({ name: "PaxHeaders/x", type }, body);
}

/** A whole archive: the parts and two blocks of zeros. */
export function archive(...parts: Buffer[]): Buffer {
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

/** Bytes with zeros up to a whole block. */
export function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)]);
}

/** All entries of an archive that is written in chunks of `chunkBytes`. */
export function readEntries(bytes: Buffer, chunkBytes = 65536): TarEntry[] {
  const entries: TarEntry[] = [];
  const reader = new TarReader({ onEntry: (entry) => entries.push(entry) });
  // A chunk's owner may use its memory again: what is kept of it would be overwritten.
  const chunk = Buffer.alloc(chunkBytes);
  for (let at = 0; at < bytes.length; at += chunkBytes) {
    const length = bytes.copy(chunk, 0, at);
    reader.write(chunk.subarray(0, length));
    chunk.fill(0xee);
  }
  reader.end();
  return entries;
}

function octal(block: Buffer, at: number, length: number, value: number): void {
  block.write(value.toString(8).padStart(length - 1, "0"), at, length, "latin1");
}

function checksum(block: Buffer): void {
  block.fill(" ", 148, 156);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
}

function paxRecord(keyword: string, value: string | Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${keyword}=`), Buffer.from(value), Buffer.from("\n")]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) {
    length = String(length).length + rest.length;
  }
  return Buffer.concat([Buffer.from(String(length)), rest]);
}
