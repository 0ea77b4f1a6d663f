/** Protobuf messages (proto3 wire format), changed so that their lengths stay right. */
import type { Random } from "../engine/random.ts";

/** A field as it stands on the wire; `bytes` is what follows the key, without a length. */
interface Field {
  number: number;
  wireType: number;
  bytes: Buffer;
}

const lengthDelimited = 2;

/** Changes one field of a message, or takes one in, out, or to another place. */
export function changeMessage(input: Buffer, random: Random): Buffer {
  const fields = readFields(input);
  if (fields.length === 0) return random.bytes(random.small(20));
  const at = random.below(fields.length);
  const field = fields[at];
  if (field === undefined) return input;
  switch (random.below(8)) {
    case 0:
      fields.splice(at, 1);
      break;
    case 1:
      fields.splice(random.below(fields.length), 0, field);
      break;
    case 2:
      field.number = 1 + random.small(20);
      break;
    case 3:
      field.wireType = random.pick([0, 1, 2, 5]);
      break;
    default:
      field.bytes = changeContent(field, random);
  }
  return Buffer.concat(fields.map(writeField));
}

function changeContent({ wireType, bytes }: Field, random: Random): Buffer {
  if (wireType === 0) return someVarint(random);
  if (wireType !== lengthDelimited) return random.bytes(bytes.length);
  if (bytes.length > 2 && random.oneIn(3)) return changeMessage(bytes, random);
  const at = random.below(bytes.length + 1);
  const [before, behind] = [bytes.subarray(0, at), bytes.subarray(at)];
  switch (random.below(4)) {
    case 0:
      return Buffer.concat([before, someVarint(random), behind]);
    case 1:
      return Buffer.concat([before, behind.subarray(1 + random.small(8))]);
    case 2:
      return Buffer.concat([before, someVarint(random), behind.subarray(1)]);
    default:
      return Buffer.concat([before, random.bytes(random.small(6)), behind]);
  }
}

/** The fields up to where the bytes are no message any more. */
function readFields(input: Buffer): Field[] {
  const fields: Field[] = [];
  for (let at = 0; at < input.length;) {
    const key = readVarint(input, at);
    if (key === undefined) break;
    const wireType = key.value & 7;
    const length = wireType === lengthDelimited ? readVarint(input, key.end) : undefined;
    const start = length?.end ?? key.end;
    const size = length?.value ?? sizeOf(wireType, input, start);
    if (size === undefined || start + size > input.length) break;
    const bytes = input.subarray(start, start + size);
    fields.push({ number: key.value >>> 3, wireType, bytes });
    at = start + size;
  }
  return fields;
}

function sizeOf(wireType: number, input: Buffer, at: number): number | undefined {
  if (wireType === 1) return 8;
  if (wireType === 5) return 4;
  if (wireType !== 0) return undefined;
  let end = at;
  while (end < input.length && (input[end] ?? 0) >= 0x80) end++;
  return end + 1 - at;
}

function writeField({ number, wireType, bytes }: Field): Buffer {
  const key = writeVarint(BigInt(number * 8 + wireType));
  const length = wireType === lengthDelimited ? [writeVarint(BigInt(bytes.length))] : [];
  return Buffer.concat([key, ...length, bytes]);
}

function readVarint(input: Buffer, at: number): { value: number; end: number } | undefined {
  let value = 0;
  for (let end = at; end < Math.min(input.length, at + 5); end++) {
    const byte = input[end] ?? 0;
    value += (byte & 0x7f) * 2 ** (7 * (end - at));
    if (byte < 0x80) return { value: value % 2 ** 31, end: end + 1 };
  }
  return undefined;
}

const edges = [0n, 1n, 2n, 127n, 128n, 511n, 512n, 4095n, 65_536n, 2n ** 31n, 2n ** 32n - 1n];
const wideEdges = [2n ** 32n, 2n ** 40n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

function someVarint(random: Random): Buffer {
  return writeVarint(random.oneIn(4) ? random.pick(wideEdges) : random.pick(edges));
}

function writeVarint(value: bigint): Buffer {
  const bytes: number[] = [];
  for (let rest = value; ; rest >>= 7n) {
    if (rest < 0x80n) return Buffer.from([...bytes, Number(rest)]);
    bytes.push(Number(rest & 0x7fn) | 0x80);
  }
}
