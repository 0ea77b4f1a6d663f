/** A disk of its own for a test: small, so that it can be filled, and without harm to others broken. */
import { mkdir, rm, truncate, writeFile } from "node:fs/promises";
import path from "node:path";
import { attempt, run } from "./command.ts";
import type { Sandbox } from "./sandbox.ts";

/** What a disk is like. */
export interface SmallDiskOptions {
  bytes: number;
  /** Most files, about; by default more than fit. */
  inodes?: number;
}

/** An ext4 file system in a file, mounted in a sandbox. */
export class SmallDisk {
  readonly directory: string;
  readonly #image: string;

  private constructor(directory: string) {
    this.directory = directory;
    this.#image = `${directory}.ext4`;
  }

  /** Makes one and mounts it at `name` in the sandbox, until that is closed. */
  static async make(sandbox: Sandbox, name: string, options: SmallDiskOptions): Promise<SmallDisk> {
    const disk = new SmallDisk(sandbox.path(name));
    await mkdir(disk.directory, { recursive: true });
    await writeFile(disk.#image, "");
    await truncate(disk.#image, options.bytes);
    const inodes = options.inodes === undefined ? [] : ["-N", String(options.inodes)];
    await run("mkfs.ext4", ["-q", "-m", "0", ...inodes, disk.#image]);
    await disk.mount();
    sandbox.onClose(name, async () => {
      await run("umount", [disk.directory]);
    });
    return disk;
  }

  /** Mounts it, as it is when it was made. An error of the file system makes it read-only. */
  async mount(): Promise<void> {
    await run("mount", ["-o", "loop,errors=remount-ro", this.#image, this.directory]);
  }

  /** Fills it to the last block. */
  async fill(): Promise<void> {
    for (const blockBytes of [1 << 20, 4096]) {
      const output = ["of=filler", "oflag=append", "conv=notrunc"];
      const dd = ["if=/dev/zero", ...output, `bs=${blockBytes}`];
      await attempt("dd", dd, { cwd: this.directory });
    }
  }

  /** Uses up the inodes. */
  async fillInodes(): Promise<void> {
    const filler = path.join(this.directory, "filler");
    await mkdir(filler);
    const script = "i=0; while : > $i; do i=$((i+1)); done";
    await attempt("sh", ["-c", script], { cwd: filler });
  }

  /** Frees what was filled. */
  async free(): Promise<void> {
    await rm(path.join(this.directory, "filler"), { recursive: true });
  }

  /** Has the file system find an error, upon which it lets nobody write any more. */
  async fail(): Promise<void> {
    const device = await run("findmnt", ["-n", "-o", "SOURCE", this.directory]);
    await writeFile(`/sys/fs/ext4/${path.basename(device)}/trigger_fs_error`, "1");
  }

  /** Unmounts, checks, repairs and mounts it. */
  async repair(): Promise<void> {
    await run("umount", [this.directory]);
    const { status, stdout } = await attempt("e2fsck", ["-f", "-y", this.#image]);
    if (status > 2) throw new Error(`the disk cannot be repaired: ${stdout.toString()}`);
    await this.mount();
  }
}
