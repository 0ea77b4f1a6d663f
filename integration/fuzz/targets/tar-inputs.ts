/** Tar archives made, changed and mended in ways that keep their structure. */
import {
  archive,
  header,
  member,
  padded,
  pax,
  type HeaderFields,
} from "../../../src/tar/test-archive.ts";
import type { Random } from "../engine/random.ts";

const blockBytes = 512;

/** Names that meet each other, and names that try to leave. */
const names = [
  ...[
    "a",
    "a/b",
    "a/b/c",
    "b",
    "./a",
    "/a",
    "../a",
    "a/../../b",
    "a//b/",
    ".",
    "/",
    "",
    "..",
    "a/.",
  ],
  ...[
    "l",
    "l/x",
    "l/l/l",
    "proc/x",
    "dev",
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh..wh..opq",
    ".wh.",
    ".wh..wh.x",
  ],
  ...[
    ".wh...",
    "é",
    "\u0001",
    "n".repeat(99),
    "n".repeat(100),
    `${"d/".repeat(49)}x`,
    "a\\b",
    "a\nb",
  ],
];
const longNames = [
  ...[
    "n".repeat(255),
    "n".repeat(256),
    "n/".repeat(2048),
    "n/".repeat(2047),
    "../".repeat(1000),
    "a\0b",
  ],
];
const numbers = [
  ...["0", "1", "511", "512", "513", "1000", "65535", "4294967294", "4294967295", "8589934592"],
  ...[
    "1099511627776",
    "1099511627777",
    "9007199254740991",
    "9007199254740993",
    "-1",
    "1e3",
    " 1",
    "",
  ],
];
const times = [
  "0",
  "1.5",
  "-1.5",
  "-0.000000001",
  "1.",
  ".5",
  "1e9",
  "9007199254740991.999999999",
  "-",
];
const attributes = [
  ...[
    "user.a",
    "user.",
    "security.capability",
    "trusted.overlay.opaque",
    "system.posix_acl_access",
  ],
  ...["user.overlay.opaque", "", "x", `user.${"n".repeat(250)}`, `user.${"n".repeat(260)}`],
];
const types = [
  "0",
  "0",
  "0",
  "1",
  "1",
  "2",
  "2",
  "3",
  "4",
  "5",
  "5",
  "6",
  "7",
  "\0",
  "S",
  "V",
  "Z",
  "g",
];

/** An archive of a few members. */
export function someArchive(random: Random): Buffer {
  const members = Array.from({ length: 1 + random.small(6) }, () => someMember(random));
  return random.oneIn(6) ? Buffer.concat(members) : archive(...members);
}

/** Changes a field of a header, or takes members in, out, or to another place. */
export function changeArchive(input: Buffer, random: Random): Buffer {
  const blocks = Math.floor(input.length / blockBytes);
  const at = random.below(blocks + 1) * blockBytes;
  const [before, behind] = [input.subarray(0, at), input.subarray(at)];
  switch (random.below(5)) {
    case 0:
      return Buffer.concat([before, someMember(random), behind]);
    case 1:
      return Buffer.concat([before, behind.subarray(blockBytes * (1 + random.small(3)))]);
    case 2:
      return Buffer.concat([
        before,
        behind.subarray(0, blockBytes * (1 + random.small(3))),
        behind,
      ]);
    default:
      return mendChecksums(changeField(input, at, random));
  }
}

/** Gives every block that looks like a header the right checksum. */
export function mendChecksums(input: Buffer): Buffer {
  const bytes = Buffer.from(input);
  for (let at = 0; at + blockBytes <= bytes.length; at += blockBytes) {
    const block = bytes.subarray(at, at + blockBytes);
    if (block.toString("latin1", 257, 262) !== "ustar") continue;
    block.fill(" ", 148, 156);
    let sum = 0;
    for (const byte of block) sum += byte;
    block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  }
  return bytes;
}

/** Where the fields of a header are: offset and length. */
const fields: readonly [number, number][] = [
  ...([
    [0, 100],
    [100, 8],
    [108, 8],
    [116, 8],
    [124, 12],
    [136, 12],
    [156, 1],
  ] as const),
  ...([
    [157, 100],
    [257, 8],
    [329, 8],
    [337, 8],
    [345, 155],
    [386, 12],
    [398, 12],
    [482, 1],
    [483, 12],
  ] as const),
].map(([offset, length]) => [offset, length]);

function changeField(input: Buffer, at: number, random: Random): Buffer {
  const bytes = Buffer.from(input);
  const [offset, length] = random.pick(fields);
  const start = at + offset;
  const end = Math.min(start + length, bytes.length);
  if (end <= start) return bytes;
  if (length === 1) bytes[start] = random.pick(types).charCodeAt(0);
  else if (length >= 100) bytes.fill(0, start, end).write(random.pick(names), start, end - start);
  else if (random.oneIn(3)) random.bytes(end - start).copy(bytes, start);
  else {
    const octal = Number(random.pick(numbers)).toString(8);
    bytes.fill(0, start, end).write(octal.slice(0, length), start, end - start, "latin1");
  }
  return bytes;
}

function someMember(random: Random): Buffer {
  switch (random.below(8)) {
    case 0:
      return Buffer.concat([pax(someRecords(random)), someFile(random)]);
    case 1:
      return pax(someRecords(random), random.pick(["x", "g", "X"]));
    case 2: {
      const name = random.pick([...names, ...longNames]);
      const fields: HeaderFields = { name: "././@LongLink", type: random.pick(["L", "K"]) };
      return Buffer.concat([member({ ...fields, magic: "gnu" }, `${name}\0`), someFile(random)]);
    }
    case 3:
      return someSparse(random);
    default:
      return someFile(random);
  }
}

/** Half of them are of a few, so that entries meet and links lead somewhere. */
function someName(random: Random): string {
  return random.oneIn(2) ? random.pick(names.slice(0, 4)) : random.pick(names);
}

function someFile(random: Random): Buffer {
  const type = random.pick(types);
  const data = type === "0" || random.oneIn(8) ? random.bytes(random.small(1100)) : Buffer.alloc(0);
  return member(
    {
      name: someName(random),
      type,
      link: someName(random),
      mode: random.below(0o10000),
      uid: random.small(70_000),
      gid: random.small(70_000),
      mtime: random.small(2 ** 31),
      magic: random.pick(["posix", "posix", "gnu", "v7"]),
      deviceMajor: random.small(4200),
      deviceMinor: random.small(2 ** 20 + 10),
      ...(random.oneIn(6) ? { prefix: random.pick(names) } : {}),
      ...(random.oneIn(12) ? { size: random.small(2 ** 33) } : {}),
    },
    data,
  );
}

function someRecords(random: Random): [string, string | Buffer][] {
  return Array.from({ length: 1 + random.small(4) }, (): [string, string | Buffer] => {
    switch (random.below(6)) {
      case 0:
        return ["path", random.pick([...names, ...longNames])];
      case 1:
        return ["linkpath", random.pick([...names, ...longNames])];
      case 2:
        return [random.pick(["size", "uid", "gid"]), random.pick(numbers)];
      case 3:
        return ["mtime", random.pick(times)];
      case 4:
        return [`SCHILY.xattr.${random.pick(attributes)}`, random.bytes(random.small(80))];
      default:
        return [
          `GNU.sparse.${random.pick(["major", "minor", "realsize", "map"])}`,
          random.pick(numbers),
        ];
    }
  });
}

function someSparse(random: Random): Buffer {
  const runs = Array.from({ length: random.small(5) }, () => {
    return [random.small(40) * 512, random.small(4) * 512 + (random.oneIn(3) ? 100 : 0)] as const;
  }).toSorted(([a], [b]) => a - b);
  const bytes = runs.reduce((sum, [, length]) => sum + length, 0);
  const size = String(random.oneIn(4) ? random.pick(numbers) : 60 * 512);
  const name = random.pick(names);
  const flat = runs.flat();
  const data = Buffer.alloc(bytes);
  switch (random.below(4)) {
    case 0:
      return Buffer.concat([
        pax([
          ["GNU.sparse.size", size],
          ["GNU.sparse.map", flat.join(",")],
        ]),
        member({ name }, data),
      ]);
    case 1: {
      const pairs = runs.flatMap(([offset, length]): [string, string][] => [
        ["GNU.sparse.offset", String(offset)],
        ["GNU.sparse.numbytes", String(length)],
      ]);
      return Buffer.concat([pax([["GNU.sparse.size", size], ...pairs]), member({ name }, data)]);
    }
    case 2:
      return oldSparse(name, size, flat, data);
    default: {
      const lines = [runs.length, ...flat].map((value) => `${value}\n`);
      const records = [["GNU.sparse.major", "1"] as const, ["GNU.sparse.realsize", size] as const];
      const map = padded(Buffer.from(lines.join("")));
      return Buffer.concat([pax(records), member({ name }, Buffer.concat([map, data]))]);
    }
  }
}

/** Two runs in the header, the others in a block behind it. */
function oldSparse(name: string, size: string, flat: readonly number[], data: Buffer): Buffer {
  const octal = (value: number): string => value.toString(8).padStart(11, "0");
  const write = (block: Buffer, at: number, values: readonly number[]): void => {
    for (const [index, value] of values.entries()) block.write(octal(value), at + 12 * index);
  };
  const [inHeader, behind] = [flat.slice(0, 4), flat.slice(4)];
  const first = header({
    ...{ name, type: "S", magic: "gnu", size: data.length },
    patch: (block) => {
      write(block, 386, inHeader);
      block[482] = behind.length > 0 ? 1 : 0;
      block.write(octal(Math.max(0, Number(size)) || 0).slice(0, 11), 483);
    },
  });
  const second = Buffer.alloc(behind.length > 0 ? blockBytes : 0);
  write(second, 0, behind);
  return Buffer.concat([first, second, padded(data)]);
}
