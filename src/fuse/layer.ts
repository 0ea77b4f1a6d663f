/** A layer as the FUSE session serves it, and which nodeid means what. */
import { ClipError } from "../base/errors.ts";

/**
 * One layer. All its memory is shared with the FUSE threads.
 *
 * Protocol of {@link FuseLayer.spanPresent}: the bytes of a span are written to the data file
 * before its flag becomes non-zero (`Atomics.store`), and a flag is cleared before the bytes are
 * changed or freed. A span that returns after it was cleared takes another non-zero value than
 * before, so that a thread which read meanwhile notices.
 */
export interface FuseLayer {
  /** Names the layer in the mount, 1 to 2^20; never used again for another layer. */
  number: number;
  /** Bytes of the layer blob. */
  size: number;
  /** The file that holds the bytes of those spans that are present, each at its own offset. */
  dataPath: string;
  /** Where each span begins, and as the last element where the last one ends: the blob's size. */
  spanStarts: Float64Array;
  /** For each span, non-zero if its bytes can be read from the data file. */
  spanPresent: Uint8Array;
  /** For each span, set to 1 when it is read; whoever wants to know clears it. */
  spanUsed?: Uint8Array;
  /** Makes the layer visible as a directory tree, too. */
  tree?: {
    /** The EROFS metadata image. */
    image: SharedArrayBuffer;
  };
}

const layerNumberMax = 2 ** 20;

/**
 * Checks what a caller claims about a layer, since a thread could not report it.
 * @throws ClipError ARGUMENT_INVALID
 */
export function checkLayer(layer: FuseLayer): void {
  const { number, size, spanStarts, spanPresent } = layer;
  const requirements: [boolean, string][] = [
    [isInteger(number, 1, layerNumberMax), "its number is out of range"],
    [isInteger(size, 0, Number.MAX_SAFE_INTEGER), "its size is out of range"],
    [
      spanStarts.buffer instanceof SharedArrayBuffer &&
        spanPresent.buffer instanceof SharedArrayBuffer,
      "its spans are not in shared memory",
    ],
    [spanStarts.length === spanPresent.length + 1, "it needs one more boundary than spans"],
    [spanStarts[0] === 0 && spanStarts.at(-1) === size, "its spans do not cover it"],
    [isIncreasing(spanStarts), "its spans are not in order"],
  ];
  const broken = requirements.find(([holds]) => !holds);
  if (broken === undefined) return;
  throw new ClipError("ARGUMENT_INVALID", `layer ${number} cannot be served: ${broken[1]}`);
}

/** What a nodeid means. Inode 0 of a layer is its blob, any other is a nid of its tree. */
export interface Node {
  layer: number;
  inode: number;
}

const inodesPerLayer = 2 ** 32;

/** nodeid of an inode of a layer; it is also its st_ino. */
export function nodeIdOf(layer: number, inode: number): number {
  return layer * inodesPerLayer + inode;
}

/** The inverse of {@link nodeIdOf}; undefined for what it never yields. */
export function nodeOf(nodeId: number): Node | undefined {
  const layer = Math.floor(nodeId / inodesPerLayer);
  if (!(layer >= 1 && layer <= layerNumberMax)) return undefined;
  return { layer, inode: nodeId % inodesPerLayer };
}

/** Name in the mount of a layer's blob. */
export function blobName(layer: number): string {
  return String(layer);
}

/** Name in the mount of a layer's tree. */
export function treeName(layer: number): string {
  return `${layer}.tree`;
}

/** Which layer a name in the mount belongs to; undefined if to none. */
export function parseRootName(name: Buffer): { layer: number; tree: boolean } | undefined {
  const match = /^([1-9][0-9]{0,6})(\.tree)?$/.exec(name.toString("latin1"));
  if (match === null) return undefined;
  const layer = Number(match[1]);
  return layer > layerNumberMax ? undefined : { layer, tree: match[2] !== undefined };
}

/**
 * Reads from a layer's data file, if every span that the bytes touch is present before and still
 * the same afterwards (see {@link FuseLayer}).
 * @param read fills `length` bytes from `offset` of the data file; false if it could not
 */
export function readIfPresent(
  layer: FuseLayer,
  offset: number,
  length: number,
  read: () => boolean,
): boolean {
  const { spanStarts, spanPresent } = layer;
  const end = offset + length;
  const first = spanAt(spanStarts, offset);
  const seen: number[] = [];
  for (let span = first; (spanStarts[span] ?? Infinity) < end; span++) {
    const flag = span < spanPresent.length ? Atomics.load(spanPresent, span) : 0;
    if (flag === 0) return false;
    seen.push(flag);
  }
  if (!read()) return false;
  // Written only where it changes something, so that threads do not take the memory from each other.
  for (let span = first; span < first + seen.length; span++) {
    if (layer.spanUsed?.[span] === 0) layer.spanUsed[span] = 1;
  }
  return seen.every((flag, at) => Atomics.load(spanPresent, first + at) === flag);
}

/** Index of the span that holds the byte at `offset`. */
function spanAt(starts: Float64Array, offset: number): number {
  let low = 0;
  let high = starts.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if ((starts[middle] ?? Infinity) <= offset) low = middle;
    else high = middle;
  }
  return low;
}

function isInteger(value: number, min: number, max: number): boolean {
  return Number.isSafeInteger(value) && value >= min && value <= max;
}

function isIncreasing(values: Float64Array): boolean {
  return values.every((value, at) => at === 0 || value > (values[at - 1] ?? Infinity));
}
