/** Makes the EROFS metadata image of a layer from the file table of its index. */
import type { Digest } from "../base/digest.ts";
import type { ErrorCode } from "../base/errors.ts";
import { buildErofsImage } from "../erofs/writer.ts";
import { decodeFileTable } from "../index/file-table.ts";
import { writeImageFile } from "./image-file.ts";
import { joinPaths } from "./implied-directories.ts";

/** What image to make, and where. */
export interface MetaOrder {
  /** The file table of the layer index. */
  fileTable: Uint8Array;
  diffId: Digest;
  /** Bytes of the layer blob. */
  size: number;
  /** Where the image is put: whole, or not at all. */
  imagePath: string;
  keepRuntimeDirectories: boolean;
}

/** What is known of an image that was made. */
export interface MetaImage {
  opaqueRoot: boolean;
  inodes: number;
  /** Directories without an entry of their own, joined by {@link joinPaths}. */
  impliedDirectories: Uint8Array;
}

/** What the thread answers. */
export type MetaAnswer =
  { id: number; made: MetaImage } | { id: number; message: string; code: ErrorCode | undefined };

/**
 * Makes a metadata image.
 * @throws ClipError CORRUPT_INDEX, CORRUPT_TAR, LAYER_UNSUPPORTED, LIMIT_EXCEEDED, DISK_FULL
 */
export async function makeMetaImage(order: MetaOrder): Promise<MetaImage> {
  const { fileTable, diffId, size, imagePath, keepRuntimeDirectories } = order;
  const bytes = Buffer.from(fileTable.buffer, fileTable.byteOffset, fileTable.byteLength);
  const { image, opaqueRoot, inodes, impliedDirectories } = buildErofsImage(
    decodeFileTable(bytes, size),
    {
      blobSize: size,
      diffId,
      keepRuntimeDirectories,
    },
  );
  await writeImageFile(imagePath, image);
  return { opaqueRoot, inodes, impliedDirectories: joinPaths(impliedDirectories) };
}
