/**
 * Writes tar archives entry by entry, with everything that a layer can hold: any bytes in names,
 * extended attributes, nanoseconds, devices. The form is POSIX pax; what fits neither the old header
 * nor a record is the caller's mistake and throws.
 */
const BLOCK = 512;

/** One member of an archive. */
export interface TarMember {
  /** As it shall stand in the archive; bytes for names that are not UTF-8. */
  name: string | Buffer;
  type?: keyof typeof TYPE_FLAGS;
  mode?: number;
  uid?: number;
  gid?: number;
  /** Nanoseconds since 1970. */
  mtime?: bigint;
  /** Contents of a file. */
  data?: Buffer | string;
  /** Target of a link. */
  link?: string | Buffer;
  device?: [major: number, minor: number];
  /** Extended attributes: name and value. */
  xattrs?: Readonly<Record<string, Buffer | string>>;
}

const TYPE_FLAGS = {
  file: "0",
  hardlink: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
} as const;

const DEFAULT_MTIME = 1_700_000_000_123_456_789n;

/** The archive of members, in order, with the two closing blocks. */
export function tarOf(members: readonly TarMember[]): Buffer {
  return Buffer.concat([...members.flatMap(memberBytes), Buffer.alloc(2 * BLOCK)]);
}

function memberBytes(member: TarMember): Buffer[] {
  const name = asBuffer(member.name);
  const link = asBuffer(member.link ?? "");
  const data = asBuffer(member.data ?? "");
  const mtime = member.mtime ?? DEFAULT_MTIME;
  const records = extendedRecords(member, name, link, mtime);
  const seconds = mtime < 0n ? 0n : mtime / 1_000_000_000n;
  const header = headerBlock({
    name: name.subarray(0, 100),
    link: link.subarray(0, 100),
    typeFlag: TYPE_FLAGS[member.type ?? "file"],
    mode: member.mode ?? (member.type === "directory" ? 0o755 : 0o644),
    uid: member.uid ?? 0,
    gid: member.gid ?? 0,
    size: data.length,
    mtime: Number(seconds),
    device: member.device ?? [0, 0],
  });
  return [...(records.length > 0 ? paxMember(records) : []), header, padded(data)];
}

function extendedRecords(member: TarMember, name: Buffer, link: Buffer, mtime: bigint): Buffer[] {
  const records: Buffer[] = [];
  const add = (key: string, value: Buffer | string): void => {
    records.push(paxRecord(key, asBuffer(value)));
  };
  if (name.length > 100) add("path", name);
  if (link.length > 100) add("linkpath", link);
  if (mtime % 1_000_000_000n !== 0n || mtime < 0n) add("mtime", decimalSeconds(mtime));
  if ((member.uid ?? 0) > 0o7777777) add("uid", String(member.uid));
  if ((member.gid ?? 0) > 0o7777777) add("gid", String(member.gid));
  for (const [key, value] of Object.entries(member.xattrs ?? {})) add(`SCHILY.xattr.${key}`, value);
  return records;
}

function decimalSeconds(nanoseconds: bigint): string {
  const sign = nanoseconds < 0n ? "-" : "";
  const absolute = nanoseconds < 0n ? -nanoseconds : nanoseconds;
  const fraction = (absolute % 1_000_000_000n).toString().padStart(9, "0");
  return `${sign}${(absolute / 1_000_000_000n).toString()}.${fraction}`;
}

/** `LENGTH KEY=VALUE\n`, where LENGTH counts itself. */
function paxRecord(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from("\n")]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) {
    length = String(length).length + rest.length;
  }
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function paxMember(records: readonly Buffer[]): Buffer[] {
  const data = Buffer.concat(records);
  const header = headerBlock({
    name: Buffer.from("pax"),
    link: Buffer.alloc(0),
    typeFlag: "x",
    mode: 0o644,
    uid: 0,
    gid: 0,
    size: data.length,
    mtime: 0,
    device: [0, 0],
  });
  return [header, padded(data)];
}

interface HeaderFields {
  name: Buffer;
  link: Buffer;
  typeFlag: string;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  mtime: number;
  device: [major: number, minor: number];
}

function headerBlock(fields: HeaderFields): Buffer {
  const block = Buffer.alloc(BLOCK);
  fields.name.copy(block, 0);
  octal(block, 100, 8, fields.mode);
  octal(block, 108, 8, Math.min(fields.uid, 0o7777777));
  octal(block, 116, 8, Math.min(fields.gid, 0o7777777));
  octal(block, 124, 12, fields.size);
  octal(block, 136, 12, fields.mtime);
  block.write(fields.typeFlag, 156, "latin1");
  fields.link.copy(block, 157);
  block.write("ustar\x0000", 257, "latin1");
  octal(block, 329, 8, fields.device[0]);
  octal(block, 337, 8, fields.device[1]);
  block.fill(" ", 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  return block;
}

function octal(block: Buffer, offset: number, width: number, value: number): void {
  const digits = value.toString(8).padStart(width - 1, "0");
  if (digits.length > width - 1) throw new Error(`${String(value)} does not fit a tar header`);
  block.write(digits, offset, "latin1");
}

function padded(data: Buffer): Buffer {
  const excess = data.length % BLOCK;
  return excess === 0 ? data : Buffer.concat([data, Buffer.alloc(BLOCK - excess)]);
}

function asBuffer(value: string | Buffer): Buffer {
  return typeof value === "string" ? Buffer.from(value) : value;
}
