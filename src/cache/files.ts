/** File operations that survive a crash, with disk-full told apart from other faults. */
import { open, rename, rm, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { ClipError } from "../base/errors.ts";

/**
 * Writes all of `bytes` at `offset`.
 * @throws ClipError DISK_FULL when the file system has no room; what was there before is as it was
 *   or partly overwritten, so the caller must not claim the range.
 */
export async function writeFully(file: FileHandle, bytes: Uint8Array, offset: number) {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file
      .write(bytes, done, bytes.length - done, offset + done)
      .catch((error: unknown) => {
        throw asDiskError(error);
      });
    done += bytesWritten;
  }
}

/** Reads exactly `length` bytes at `offset`; undefined when the file ends before. */
export async function readFully(
  file: FileHandle,
  offset: number,
  length: number,
): Promise<Buffer | undefined> {
  const bytes = Buffer.allocUnsafe(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await file.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0) return undefined;
    done += bytesRead;
  }
  return bytes;
}

/** Puts a file with these bytes at `path`: after a crash it is there whole, or not at all. */
export async function writeFileDurably(path: string, bytes: Uint8Array): Promise<void> {
  const temporary = `${path}.tmp`;
  try {
    const file = await open(temporary, "w", 0o600);
    try {
      await writeFully(file, bytes, 0);
      await file.sync();
    } finally {
      await file.close();
    }
    await renameDurably(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true });
    throw asDiskError(error);
  }
}

// The new name is on disk when this returns.
async function renameDurably(from: string, to: string): Promise<void> {
  await rename(from, to);
  await syncDirectory(dirname(to));
}

/** Makes the names in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** The error as it stands, or as DISK_FULL when that is what it means. */
export function asDiskError(error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code !== "ENOSPC" && code !== "EDQUOT") return error;
  return new ClipError("DISK_FULL", "the disk that holds the layers is full", {
    hint: "Free space on it, or remove images that are no longer needed.",
    cause: error,
  });
}
