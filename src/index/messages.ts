/** The protobuf messages of the layer index (`protos/clip/index.proto`). */
import { join } from "node:path";
import protobuf from "protobufjs";
import { corruptIndex } from "./failure.ts";

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
  /** @throws ClipError CORRUPT_INDEX */
  decode(bytes: Buffer): Message;
}

const schema = protobuf.loadSync(join(import.meta.dirname, "../../protos/clip/index.proto"));

export const headCodec = codec<HeadMessage>("Head");
export const spansCodec = codec<SpansMessage>("Spans");
export const filesCodec = codec<FilesMessage>("Files");

/**
 * A decoded 64-bit number.
 * @throws ClipError CORRUPT_INDEX when it cannot be told apart from its neighbours
 */
export function narrow(value: Wide | undefined): number {
  const number = typeof value === "number" ? value : (value?.toNumber() ?? NaN);
  if (!Number.isSafeInteger(number)) throw corruptIndex("a number is missing or out of range");
  return number;
}

function codec<Message extends object>(name: string): Codec<Message> {
  const type = schema.lookupType(`clip.index.v1.${name}`);
  return {
    encode: (message) => Buffer.from(type.encode(message).finish()),
    decode: (bytes) => {
      try {
        // The decoder gives every field the type that the schema states.
        return type.decode(bytes) as unknown as Message;
      } catch (error) {
        throw corruptIndex(`${name} cannot be decoded`, error);
      }
    },
  };
}
