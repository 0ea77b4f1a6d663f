/** The protobuf messages of the layer index (`protos/clip/index.proto`). */
import { join } from "node:path";
import protobuf from "protobufjs";
import { isClipError } from "../base/errors.ts";
import { layerEntriesMax, layerSpansMax } from "../base/limits.ts";
import { checkLimit, corruptIndex } from "./failure.ts";

/** A number that may be beyond 32 bits, as protobufjs decodes it. */
export type Wide = number | { toNumber(): number };

export interface SectionMessage {
  storedLength: Wide;
  length: Wide;
  encoding: number;
  digest: Uint8Array;
}

export interface HeadMessage {
  layerDigest: Uint8Array;
  diffId: Uint8Array;
  compressedSize: Wide;
  uncompressedSize: Wide;
  spans?: SectionMessage | null;
  files?: SectionMessage | null;
  windows?: SectionMessage | null;
}

export interface SpansMessage {
  compressedSteps: Wide[];
  bitOffsets: Uint8Array;
  lengths: Wide[];
  compressedLengths: Wide[];
  digests: Uint8Array;
  windowStoredLengths: number[];
  windowEncodings: Uint8Array;
  windowChecksums: number[];
}

export interface FilesMessage {
  pathShared: number[];
  pathRest: number[];
  pathBytes: Uint8Array;
  types: Uint8Array;
  modes: number[];
  uids: number[];
  gids: number[];
  mtimeSteps: Wide[];
  mtimeNanoseconds: number[];
  sizes: Wide[];
  extentCounts: number[];
  extentGaps: Wide[];
  extentRemainders: Wide[];
  extentSteps: Wide[];
  linkLengths: number[];
  linkBytes: Uint8Array;
  devices: { entryStep: number; major: number; minor: number }[];
  attributes: { entryStep: number; name: Uint8Array; value: Uint8Array }[];
}

/** One kind of message. */
export interface Codec<Message> {
  encode(message: Message): Buffer;
  /** @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED */
  decode(bytes: Buffer): Message;
}

const schema = protobuf.loadSync(join(import.meta.dirname, "../../protos/clip/index.proto"));

export const headCodec = codec<HeadMessage>("Head", 0);
export const spansCodec = codec<SpansMessage>("Spans", layerSpansMax);
export const filesCodec = codec<FilesMessage>("Files", layerEntriesMax);

/**
 * A decoded 64-bit number.
 * @throws ClipError CORRUPT_INDEX when it cannot be told apart from its neighbours
 */
export function narrow(value: Wide | undefined): number {
  const number = typeof value === "number" ? value : (value?.toNumber() ?? NaN);
  if (!Number.isSafeInteger(number)) throw corruptIndex("a number is missing or out of range");
  return number;
}

/** `valuesMax`: most values of a repeated field. */
function codec<Message extends object>(name: string, valuesMax: number): Codec<Message> {
  const type = schema.lookupType(`clip.index.v1.${name}`);
  return {
    encode: (message) => Buffer.from(type.encode(message).finish()),
    decode: (bytes) => {
      const message = translateFailures(name, () => {
        const most = mostValues(type, bytes);
        checkLimit(most, valuesMax, "the number of values in a column");
        return type.decode(bytes);
      });
      // Of a field of bytes that is not there protobufjs says that it is an empty array.
      for (const { name: key, type: kind } of type.fieldsArray) {
        if (kind === "bytes" && !Object.hasOwn(message, key))
          Object.assign(message, { [key]: none });
      }
      // The decoder gives every field the type that the schema states.
      return message as unknown as Message;
    },
  };
}

const none: Buffer = Buffer.alloc(0);

function translateFailures<Value>(name: string, work: () => Value): Value {
  try {
    return work();
  } catch (error) {
    if (isClipError(error)) throw error;
    throw corruptIndex(`${name} cannot be decoded`, error);
  }
}

/**
 * How many values that repeated field has which has the most. Each takes a byte at least, and many
 * times that when it is decoded: it is to be known how many there are before that is done.
 */
function mostValues(type: protobuf.Type, bytes: Buffer): number {
  const counts = new Map<number, number>();
  const reader = protobuf.Reader.create(bytes);
  while (reader.pos < reader.len) {
    const key = reader.uint32();
    const field = type.fieldsById[key >>> 3];
    const isPacked = (key & 7) === 2 && field !== undefined && field.type in protobuf.types.packed;
    let values = 1;
    if (isPacked) {
      const end = reader.uint32() + reader.pos;
      values = field.type === "fixed32" ? (end - reader.pos) / 4 : countVarints(bytes, reader, end);
      reader.skip(end - reader.pos);
    } else {
      reader.skipType(key & 7);
    }
    if (field?.repeated === true) counts.set(field.id, (counts.get(field.id) ?? 0) + values);
  }
  return Math.max(0, ...counts.values());
}

function countVarints(bytes: Buffer, { pos }: protobuf.Reader, end: number): number {
  let count = 0;
  // The last byte of each has its highest bit clear.
  for (let at = pos; at < Math.min(end, bytes.length); at++) if ((bytes[at] ?? 0) < 0x80) count++;
  return count;
}
