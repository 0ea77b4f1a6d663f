/** Checks of a layer whose every span is local. */
import { createHash, hash } from "node:crypto";
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { LayerFile } from "../cache/layer-file.ts";
import type { LayerHead } from "../index/model.ts";

/** Bytes hashed at a time: a fraction of a millisecond of the main thread. */
const chunkBytes = 512 * 1024;

/**
 * sha256 of the whole uncompressed layer, as it stands on disk.
 * @throws ClipError CORRUPT_LAYER when the file is shorter than it should be
 */
export async function digestOfLayerFile(file: LayerFile, signal: AbortSignal): Promise<Digest> {
  const whole = createHash("sha256");
  for (let offset = 0; offset < file.size; offset += chunkBytes) {
    signal.throwIfAborted();
    const bytes = await file.read(offset, Math.min(chunkBytes, file.size - offset));
    if (bytes === undefined) {
      throw new ClipError("CORRUPT_LAYER", `the cache file ends before byte ${file.size}`);
    }
    whole.update(bytes);
  }
  return `sha256:${whole.digest("hex")}` as Digest;
}

/** Those spans whose bytes on disk do not match their digests. */
export async function wrongSpans(
  file: LayerFile,
  head: LayerHead,
  signal: AbortSignal,
): Promise<number[]> {
  const wrong: number[] = [];
  for (const [at, span] of head.spans.entries()) {
    signal.throwIfAborted();
    const bytes = await file.read(span.checkpoint.uncompressedOffset, span.length);
    const right = bytes !== undefined && `sha256:${hash("sha256", bytes)}` === span.digest;
    if (!right) wrong.push(at);
  }
  return wrong;
}
