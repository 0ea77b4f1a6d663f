/** Changes inputs blindly: bits, bytes, numbers, blocks, words, and pieces of other inputs. */
import type { Random } from "./random.ts";

/** What a mutation may draw on. */
export interface MutationSources {
  /** Words that mean something in the format. */
  dictionary: readonly Buffer[];
  /** Other inputs. */
  corpus: readonly Buffer[];
  /** No result is longer. */
  bytesMax: number;
}

type Mutation = (bytes: Buffer, random: Random, sources: MutationSources) => Buffer;

/** A changed copy of `bytes`: mostly by one step, sometimes by several. */
export function mutate(bytes: Buffer, random: Random, sources: MutationSources): Buffer {
  let changed: Buffer = Buffer.from(bytes);
  for (let steps = 1 + random.small(5); steps > 0; steps--) {
    changed = random.pick(mutations)(changed, random, sources);
  }
  return changed.length > sources.bytesMax ? changed.subarray(0, sources.bytesMax) : changed;
}

/** Numbers at the edges of what fits, and of what is accepted. */
const edges = [
  ...[0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 511, 512, 513, 1023, 1024],
  ...[4095, 4096, 4097, 32_767, 32_768, 65_535, 65_536, 2 ** 20, 2 ** 24, 2 ** 26],
  ...[2 ** 31 - 1, 2 ** 31, 2 ** 32 - 2, 2 ** 32 - 1],
];
const wideEdges = [0n, 1n, 2n ** 31n, 2n ** 32n, 2n ** 40n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
const decimals = ["-1", "0", "1", "4294967295", "4294967296", "9007199254740993", "1e9", "0x10"];

const flipBit: Mutation = (bytes, random) => {
  if (bytes.length > 0) bytes[random.below(bytes.length)]! ^= 1 << random.below(8);
  return bytes;
};

const setByte: Mutation = (bytes, random) => {
  if (bytes.length > 0) bytes[random.below(bytes.length)] = random.word();
  return bytes;
};

const addToByte: Mutation = (bytes, random) => {
  if (bytes.length > 0) bytes[random.below(bytes.length)]! += random.below(35) - 17;
  return bytes;
};

const setNumber: Mutation = (bytes, random) => {
  const width = random.pick([1, 2, 4, 8]);
  if (bytes.length < width) return bytes;
  const at = random.below(bytes.length - width + 1);
  const number = Buffer.alloc(8);
  if (width === 8) number.writeBigUInt64LE(random.pick(wideEdges));
  else number.writeUInt32LE(random.pick(edges));
  const taken = number.subarray(0, width);
  if (random.oneIn(2)) taken.reverse();
  taken.copy(bytes, at);
  return bytes;
};

const removeBlock: Mutation = (bytes, random) => {
  const start = random.below(bytes.length + 1);
  const end = start + blockLength(bytes.length - start, random);
  return Buffer.concat([bytes.subarray(0, start), bytes.subarray(end)]);
};

const cutEnd: Mutation = (bytes, random) => bytes.subarray(0, random.below(bytes.length + 1));

const repeatBlock: Mutation = (bytes, random, { bytesMax }) => {
  const start = random.below(bytes.length + 1);
  const block = bytes.subarray(start, start + blockLength(bytes.length - start, random));
  const times = Math.min(1 + random.small(40), Math.ceil(bytesMax / Math.max(1, block.length)));
  return insert(bytes, random, Buffer.concat(Array.from({ length: times }, () => block)));
};

const insertNoise: Mutation = (bytes, random) => {
  const length = 1 + random.small(64);
  const noise = random.oneIn(2) ? random.bytes(length) : Buffer.alloc(length, random.word());
  return insert(bytes, random, noise);
};

const overwriteBlock: Mutation = (bytes, random, { corpus }) => {
  const other = corpus.length === 0 ? bytes : random.pick(corpus);
  const from = random.below(other.length + 1);
  const length = blockLength(other.length - from, random);
  other.copy(bytes, random.below(bytes.length + 1), from, from + length);
  return bytes;
};

const splice: Mutation = (bytes, random, { corpus }) => {
  if (corpus.length === 0) return bytes;
  const other = random.pick(corpus);
  const head = bytes.subarray(0, random.below(bytes.length + 1));
  return Buffer.concat([head, other.subarray(random.below(other.length + 1))]);
};

const insertWord: Mutation = (bytes, random, { dictionary }) =>
  insert(bytes, random, wordOf(dictionary, random));

const overwriteWithWord: Mutation = (bytes, random, { dictionary }) => {
  wordOf(dictionary, random).copy(bytes, random.below(bytes.length + 1));
  return bytes;
};

/** Puts another number in the place of one that is written in digits. */
const changeDecimal: Mutation = (bytes, random) => {
  let start = random.below(bytes.length);
  while (start < bytes.length && !isDigit(bytes[start] ?? 0)) start++;
  let end = start;
  while (end < bytes.length && isDigit(bytes[end] ?? 0)) end++;
  if (end === start) return bytes;
  const edge = random.oneIn(2) ? random.pick(decimals) : String(random.pick(edges));
  return Buffer.concat([bytes.subarray(0, start), Buffer.from(edge), bytes.subarray(end)]);
};

const mutations: readonly Mutation[] = [
  flipBit,
  flipBit,
  setByte,
  setByte,
  addToByte,
  setNumber,
  setNumber,
  removeBlock,
  cutEnd,
  repeatBlock,
  insertNoise,
  overwriteBlock,
  splice,
  insertWord,
  insertWord,
  overwriteWithWord,
  changeDecimal,
];

function insert(bytes: Buffer, random: Random, block: Buffer): Buffer {
  const at = random.below(bytes.length + 1);
  return Buffer.concat([bytes.subarray(0, at), block, bytes.subarray(at)]);
}

function wordOf(dictionary: readonly Buffer[], random: Random): Buffer {
  return dictionary.length === 0 ? random.bytes(2) : random.pick(dictionary);
}

/** Mostly short, sometimes all there is. */
function blockLength(max: number, random: Random): number {
  return random.oneIn(8) ? random.below(max + 1) : random.small(Math.min(max, 64));
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}
