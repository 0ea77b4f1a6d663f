/** Places from which an encoded index is read. */
import { type FileHandle, open } from "node:fs/promises";
import { ClipError } from "../base/errors.ts";
import type { RangeSource } from "../base/range.ts";
import { corruptIndex } from "./failure.ts";
import type { IndexSource } from "./reader.ts";

/** Bytes in memory. */
export function bufferSource(bytes: Buffer): IndexSource {
  return {
    size: bytes.length,
    read: (offset, length) => {
      const part = bytes.subarray(offset, offset + length);
      return part.length === length ? Promise.resolve(part) : Promise.reject(tooShort());
    },
  };
}

/**
 * A file, open until the source is closed.
 * @returns undefined when there is no such file
 */
export async function fileSource(path: string): Promise<IndexSource | undefined> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new ClipError("SYSTEM_CALL", `cannot open ${path}`, { cause: error });
  }
  const { size } = await file.stat();
  return {
    size,
    read: async (offset, length) => {
      const buffer = Buffer.allocUnsafeSlow(length);
      for (let done = 0; done < length;) {
        const { bytesRead } = await file.read(buffer, done, length - done, offset + done);
        if (bytesRead === 0) throw tooShort();
        done += bytesRead;
      }
      return buffer;
    },
    close: () => file.close(),
  };
}

/** Another source of which the beginning has already been read. */
export function prefixedSource(prefix: Buffer, rest: RangeSource): IndexSource {
  return {
    size: rest.size,
    read: (offset, length, signal) =>
      offset + length <= prefix.length
        ? Promise.resolve(prefix.subarray(offset, offset + length))
        : rest.read(offset, length, signal),
  };
}

function tooShort(): ClipError {
  return corruptIndex("it is shorter than it says");
}
