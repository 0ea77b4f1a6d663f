/** The local file of a layer that another one has replaced, and that the kernel may still be reading. */
import { open, type FileHandle } from "node:fs/promises";
import { readFully, writeFully } from "../cache/files.ts";

const copyBytes = 1024 * 1024;

/**
 * Puts the bytes of the file at `path` into one that was there before, which the kernel still reads.
 * @returns whether it is another file
 */
export async function overwriteFormer(former: FileHandle, path: string): Promise<boolean> {
  const current = await open(path, "r");
  try {
    const { ino, size } = await current.stat();
    if ((await former.stat()).ino === ino) return false;
    for (let offset = 0; offset < size; offset += copyBytes) {
      const bytes = await readFully(current, offset, Math.min(copyBytes, size - offset));
      if (bytes !== undefined) await writeFully(former, bytes, offset);
    }
    return true;
  } finally {
    await current.close();
  }
}
