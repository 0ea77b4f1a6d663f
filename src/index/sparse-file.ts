/** Writing a file from its beginning to its end, with holes where there are but zeros. */
import { closeSync, ftruncateSync, openSync, constants, writeSync } from "node:fs";
import { ClipError } from "../base/errors.ts";

// Small enough to find the holes of a padded archive, large enough not to shred the file.
const pieceBytes = 64 * 1024;
const zeros = Buffer.alloc(pieceBytes);

/**
 * A file that is written synchronously. An existing one is not cut first: it must be new, or hold
 * nothing but bytes of the same content.
 */
export class SparseFile {
  readonly #path: string;
  #fd: number | undefined;
  #position = 0;

  constructor(path: string) {
    this.#path = path;
  }

  /** @throws ClipError SYSTEM_CALL */
  open(): void {
    const flags = constants.O_WRONLY | constants.O_CREAT;
    this.#fd = this.#attempt(() => openSync(this.#path, flags, 0o600));
  }

  /** @throws ClipError DISK_FULL, SYSTEM_CALL */
  write(chunk: Buffer): void {
    let start = 0;
    for (let at = 0; at < chunk.length; at += pieceBytes) {
      const end = Math.min(at + pieceBytes, chunk.length);
      // The comparison ends with the first byte that differs: it costs next to nothing.
      if (chunk.compare(zeros, 0, end - at, at, end) !== 0) continue;
      this.#put(chunk, start, at);
      start = end;
    }
    this.#put(chunk, start, chunk.length);
    this.#position += chunk.length;
  }

  /**
   * Gives the file its length and closes it. It has not been synced.
   * @throws ClipError DISK_FULL, SYSTEM_CALL
   */
  end(length: number): void {
    const fd = this.#fd;
    if (fd !== undefined) this.#attempt(() => ftruncateSync(fd, length));
    this.close();
  }

  /** Closes the file as it is. */
  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #put(chunk: Buffer, start: number, end: number): void {
    const fd = this.#fd;
    if (fd === undefined) throw new ClipError("CLOSED", `${this.#path} is closed`);
    for (let at = start; at < end;) {
      at += this.#attempt(() => writeSync(fd, chunk, at, end - at, this.#position + at));
    }
  }

  #attempt<Value>(call: () => Value): Value {
    try {
      return call();
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      const isFull = code === "ENOSPC" || code === "EDQUOT";
      throw new ClipError(isFull ? "DISK_FULL" : "SYSTEM_CALL", `cannot write ${this.#path}`, {
        cause: error,
      });
    }
  }
}
