/** Reads what the disk holds, not what the kernel's page cache remembers of it. */
import { constants } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import koffi from "koffi";
import { adviseNotNeeded } from "./libc.ts";

/** O_DIRECT wants memory, offset and length in multiples of the disk's sectors: 4096 at most. */
const alignment = 4096;

/**
 * A file that is read past the page cache, which keeps what it has: hot pages stay, and nothing is
 * added. Where the file system cannot do that, the pages are dropped before they are read.
 */
export class DirectFile {
  readonly #file: FileHandle;
  readonly #isDirect: boolean;

  private constructor(file: FileHandle, isDirect: boolean) {
    this.#file = file;
    this.#isDirect = isDirect;
  }

  /** @throws Error of the system call, such as ENOENT */
  static async open(path: string): Promise<DirectFile> {
    try {
      return new DirectFile(await open(path, constants.O_RDONLY | constants.O_DIRECT), true);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "EINVAL")) throw error;
      return new DirectFile(await open(path, "r"), false);
    }
  }

  /**
   * `length` bytes at `offset`; undefined when the file ends before.
   * @throws Error of the system call, such as EIO
   */
  async read(offset: number, length: number): Promise<Buffer | undefined> {
    const start = offset - (offset % alignment);
    const end = Math.ceil((offset + length) / alignment) * alignment;
    const buffer = alignedBuffer(end - start);
    if (!this.#isDirect) await adviseNotNeeded(this.#file.fd, start, end - start);
    let done = 0;
    while (done < offset - start + length) {
      const { bytesRead } = await this.#file.read(buffer, done, buffer.length - done, start + done);
      done += bytesRead;
      // A read that ends within a block has met the end of the file.
      if (bytesRead === 0 || (this.#isDirect && bytesRead % alignment !== 0)) break;
    }
    if (done < offset - start + length) return undefined;
    return buffer.subarray(offset - start, offset - start + length);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

function alignedBuffer(length: number): Buffer {
  const bytes = Buffer.from(new ArrayBuffer(length + alignment));
  const beyond = Number(koffi.address(bytes) % BigInt(alignment));
  const start = beyond === 0 ? 0 : alignment - beyond;
  return bytes.subarray(start, start + length);
}
