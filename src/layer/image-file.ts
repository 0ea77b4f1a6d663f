/** A metadata image on disk, with a digest behind it that tells when it is damaged. */
import { hash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { writeFileDurably } from "../cache/files.ts";
import { blockBytes } from "../erofs/format.ts";

const magic = Buffer.from("clipmeta", "latin1");
/** The kernel does not look behind the end that the image's superblock states. */
const trailerBytes = magic.length + 32;

/** What is in the file of an image. */
export interface ImageFile {
  image: Buffer;
  /** `unknown`: an earlier version wrote it, without a digest. */
  state: "right" | "damaged" | "unknown";
}

/**
 * Puts an image at `path`: whole, or not at all.
 * @throws ClipError DISK_FULL
 */
export async function writeImageFile(path: string, image: Buffer): Promise<void> {
  await writeFileDurably(path, Buffer.concat([image, magic, hash("sha256", image, "buffer")]));
}

/** Reads an image. @throws Error of the system call, such as ENOENT or EIO */
export async function readImageFile(path: string): Promise<ImageFile> {
  return decodeImageFile(await readFile(path));
}

/** Takes the image out of the bytes of its file. */
export function decodeImageFile(bytes: Buffer): ImageFile {
  // Images consist of blocks, so the length tells whether there is something behind them.
  if (bytes.length > 0 && bytes.length % blockBytes === 0)
    return { image: bytes, state: "unknown" };
  const end = Math.max(0, bytes.length - trailerBytes);
  const image = bytes.subarray(0, end);
  const isRight =
    bytes.subarray(end, end + magic.length).equals(magic) &&
    bytes.subarray(end + magic.length).equals(hash("sha256", image, "buffer"));
  return { image, state: isRight ? "right" : "damaged" };
}
