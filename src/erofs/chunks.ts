/** Where the data of a regular file is, in the terms of the image. */
import type { Extent } from "../tar/entry.ts";
import { ClipError } from "../base/errors.ts";
import { blockBytes, chunkBitsMask, noBlock } from "./format.ts";

/** The data of a file: nothing, one piece of the blob from a block on, or chunks. */
export type FileData =
  | { kind: "empty" }
  | { kind: "contiguous"; block: number }
  | { kind: "chunks"; chunkBits: number; blocks: Uint32Array };

/**
 * Largest file that is mapped as contiguous blocks, which takes 8 bytes less than a chunk. The kernel
 * reads such a file page by page: of one of 99 MB it made 932 requests, of the same in a chunk 98.
 */
const contiguousBytesMax = 4096;

/** Most chunks in one image, 8 bytes each; a layer that needs more is left to an ordinary unpack. */
export const chunksMax = 16 * 1024 * 1024;

/**
 * Maps a file to blocks of the blob, in no more than `chunksLeft` chunks.
 *
 * A sparse file becomes equal chunks, each of them a hole or in the blob, as large as the places
 * where its runs begin and end allow. Runs that do not begin and end with whole blocks, in the file
 * or in the blob, have no such form: the common archivers do not write any.
 * @throws ClipError LAYER_UNSUPPORTED when the file has no such form or takes too many chunks.
 */
export function mapFile(
  size: number,
  extents: readonly Extent[],
  blobSize: number,
  chunksLeft: number,
): FileData {
  if (size === 0) return { kind: "empty" };
  for (const extent of extents) checkExtent(extent, size, blobSize);
  const [first] = extents;
  if (extents.length === 1 && first?.length === size && size <= contiguousBytesMax) {
    return { kind: "contiguous", block: first.archiveOffset / blockBytes };
  }
  const chunkBits = commonChunkBits(size, extents);
  const chunkBytes = blockBytes * 2 ** chunkBits;
  const count = Math.ceil(size / chunkBytes);
  if (count > chunksLeft) throw unsupported("the sparse files of the layer are in too many pieces");
  const blocks = new Uint32Array(count).fill(noBlock);
  for (const { fileOffset, archiveOffset, length } of extents) {
    for (let at = 0; at < length; at += chunkBytes) {
      blocks[(fileOffset + at) / chunkBytes] = (archiveOffset + at) / blockBytes;
    }
  }
  return { kind: "chunks", chunkBits, blocks };
}

function checkExtent({ fileOffset, archiveOffset, length }: Extent, size: number, blob: number) {
  const end = fileOffset + length;
  const isWhole =
    fileOffset % blockBytes === 0 &&
    archiveOffset % blockBytes === 0 &&
    (length % blockBytes === 0 || end === size);
  if (!isWhole) throw unsupported("a sparse file has runs that are not whole blocks");
  // The kernel reads whole blocks, so the last one has to be there to its end.
  if (archiveOffset + Math.ceil(length / blockBytes) * blockBytes > blob) {
    throw unsupported("the layer ends in the middle of a block");
  }
}

function commonChunkBits(size: number, extents: readonly Extent[]): number {
  let bits = 0;
  while (bits < chunkBitsMask && blockBytes * 2 ** bits < size) bits++;
  for (const { fileOffset, length } of extents) {
    const end = fileOffset + length;
    // The last chunk of a file may be a part of one.
    const boundary = end === size ? fileOffset : end;
    while (fileOffset % (blockBytes * 2 ** bits) !== 0) bits--;
    while (boundary % (blockBytes * 2 ** bits) !== 0) bits--;
  }
  return bits;
}

function unsupported(message: string): ClipError {
  return new ClipError("LAYER_UNSUPPORTED", message);
}
