/** The local file of a layer that another one has replaced, and that the kernel may still be reading. */
import { stat, type FileHandle } from "node:fs/promises";
import { writeFully } from "../cache/files.ts";
import type { LayerFile } from "../cache/layer-file.ts";

/** Whether the file at `path` is another one than this, which was there before. */
export async function isFormer(former: FileHandle, path: string): Promise<boolean> {
  return (await stat(path)).ino !== (await former.stat()).ino;
}

/**
 * Puts the bytes of `file` into the one that was there before it, which the kernel still reads: those
 * of all spans that are present. What is missing stays as it is there, wrong or right.
 * @returns whether that was everything
 * @throws ClipError DISK_FULL
 */
export async function overwriteFormer(former: FileHandle, file: LayerFile): Promise<boolean> {
  let isWhole = true;
  for (let span = 0; span < file.spanCount; span++) {
    const start = file.spanStarts[span] ?? 0;
    const bytes = file.has(span) ? await file.read(start, file.lengthOf(span)) : undefined;
    // One that the disk does not give, or that went meanwhile, is no more there than a missing one.
    if (bytes === undefined || !file.has(span)) isWhole = false;
    else await writeFully(former, bytes, start);
  }
  return isWhole;
}
