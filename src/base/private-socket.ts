/** A unix socket that nobody but its owner can ever connect to. */
import { chmod, mkdir, mkdtemp, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ClipError } from "./errors.ts";

/** Longest path of a unix socket (sun_path, less the NUL at its end). */
const pathBytesMax = 107;

/** A socket in its final place. */
export class PrivateSocket {
  readonly #path: string;
  readonly #inode: bigint;

  private constructor(path: string, inode: bigint) {
    this.#path = path;
    this.#inode = inode;
  }

  /**
   * Has `bind` bind a socket inside a directory of our own, then moves it to `path` with mode 0600:
   * so it is never open wider, and takes the place of a stale one at one stroke.
   * @throws ClipError ARGUMENT_INVALID
   */
  static async bind(
    path: string,
    bind: (temporary: string) => Promise<void>,
  ): Promise<PrivateSocket> {
    const parent = dirname(path);
    const longest = Math.max(
      Buffer.byteLength(path),
      Buffer.byteLength(join(parent, ".sXXXXXX/s")),
    );
    if (!path.startsWith("/") || longest > pathBytesMax) {
      throw new ClipError("ARGUMENT_INVALID", `${JSON.stringify(path)} cannot be a socket`, {
        hint: `Choose an absolute path of at most ${pathBytesMax} bytes, in a short directory.`,
      });
    }
    await mkdir(parent, { recursive: true, mode: 0o711 });
    const directory = await mkdtemp(join(parent, ".s"));
    try {
      const temporary = join(directory, "s");
      await bind(temporary);
      await chmod(temporary, 0o600);
      const { ino } = await stat(temporary, { bigint: true });
      await rename(temporary, path);
      return new PrivateSocket(path, ino);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }

  /** Removes the socket unless another one has taken its place. */
  async close(): Promise<void> {
    const current = await stat(this.#path, { bigint: true }).catch(() => undefined);
    if (current?.ino === this.#inode) await rm(this.#path, { force: true });
  }
}
