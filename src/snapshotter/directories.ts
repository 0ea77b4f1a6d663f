/**
 * The directories of ordinary snapshots: `<root>/s/<id>` holds the content and `<root>/w/<id>` is
 * overlayfs's work directory. Names are short, since one mount may have to list 500 of them.
 */
import { randomUUID } from "node:crypto";
import { chmod, chown, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { ClipError, describeError } from "../base/errors.ts";
import { asDiskError } from "../cache/files.ts";
import type { RootAttributes } from "../layer/layers-options.ts";
import type { Log } from "../telemetry/log.ts";
import { detachMountsBelow } from "../os/mount-table.ts";
import type { UpperDirectories } from "./mounts.ts";

/** Makes the directories of snapshots, and deletes them in the background. */
export class SnapshotDirectories {
  readonly #content: string;
  readonly #work: string;
  readonly #trash: string;
  readonly #log: Log;
  readonly #moving = new Set<Promise<unknown>>();
  #sweeping: Promise<void> | undefined;
  #sweepAgain = false;
  #closed = false;

  constructor(root: string, log: Log) {
    this.#content = join(root, "s");
    this.#work = join(root, "w");
    this.#trash = join(root, "trash");
    this.#log = log;
  }

  /** Makes the parent directories, and discards what belongs to none of the snapshots `ids`. */
  async open(ids: ReadonlySet<number>): Promise<void> {
    for (const path of [this.#content, this.#work, this.#trash]) {
      await mkdir(path, { recursive: true, mode: 0o700 });
    }
    for (const parent of [this.#content, this.#work]) {
      for (const name of await readdir(parent)) {
        if (!ids.has(Number(name))) await this.#moveToTrash(join(parent, name));
      }
    }
    this.#sweep();
  }

  /** Where the directories of a snapshot are. */
  of(id: number): UpperDirectories {
    return { upper: join(this.#content, String(id)), work: join(this.#work, String(id)) };
  }

  /**
   * Makes the directories of a new snapshot. The root of what is merged shows the owner and mode
   * of its topmost layer, so they are those of the parent's root, `like`.
   * @throws ClipError DISK_FULL
   */
  async create(id: number, like: RootAttributes | undefined): Promise<UpperDirectories> {
    const directories = this.of(id);
    try {
      await mkdir(directories.upper, { mode: 0o700 });
      await mkdir(directories.work, { mode: 0o711 });
    } catch (error) {
      throw asDiskError(error);
    }
    if (like !== undefined) {
      await chown(directories.upper, like.uid, like.gid);
      await chmod(directories.upper, like.mode & 0o7777);
    } else await chmod(directories.upper, 0o755);
    return directories;
  }

  /** Mode and owner of the root of a snapshot that has directories. */
  rootOf(id: number): Promise<RootAttributes> {
    return stat(this.of(id).upper);
  }

  /** Gets rid of the directories of a snapshot, if it has any; they are deleted later. */
  async discard(id: number): Promise<void> {
    const { upper, work } = this.of(id);
    const moving = Promise.all([this.#moveToTrash(upper), this.#moveToTrash(work)]);
    this.#moving.add(moving);
    try {
      await moving;
    } finally {
      this.#moving.delete(moving);
      this.#sweep();
    }
  }

  /** Waits until all that was discarded is deleted, as far as that is possible. */
  async drain(): Promise<void> {
    await Promise.allSettled(this.#moving);
    this.#sweep();
    while (this.#sweeping !== undefined) await this.#sweeping;
  }

  /** Stops deleting; the rest is deleted by the next clip. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.allSettled(this.#moving);
    await this.#sweeping;
  }

  async #moveToTrash(path: string): Promise<void> {
    // Ids are not used twice, but a crash may leave one in the trash while its twin is discarded.
    // Nothing is created that a full disk would have no room for.
    const name = join(this.#trash, `x${randomUUID()}`);
    try {
      await rename(path, name);
    } catch (error) {
      if (isMissing(error)) return;
      await detachMountsBelow(path);
      await rename(path, name);
    }
  }

  #sweep(): void {
    if (this.#closed) return;
    this.#sweepAgain = this.#sweeping !== undefined;
    this.#sweeping ??= this.#emptyTrash()
      .catch((error: unknown) => {
        this.#log.error({ error: describeError(error) }, "cannot read the trash");
      })
      .finally(() => {
        this.#sweeping = undefined;
        if (this.#sweepAgain) this.#sweep();
      });
  }

  async #emptyTrash(): Promise<void> {
    for (const name of await readdir(this.#trash)) {
      if (this.#closed) return;
      const path = join(this.#trash, name);
      try {
        // A client's mounts inside a bind mount of the snapshot show up here too: they are not ours.
        await detachMountsBelow(path);
        await rm(path, { recursive: true, force: true });
      } catch (error) {
        this.#log.warn({ path, error: describeError(error) }, "cannot delete a snapshot yet");
      }
    }
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}

/**
 * Makes the directory that all of a snapshotter's are in.
 * @throws ClipError ARGUMENT_INVALID when overlayfs could not be told its name
 */
export async function createRoot(root: string): Promise<void> {
  if (!/^\/[^:,\\"\s]+$/.test(root)) {
    throw new ClipError(
      "ARGUMENT_INVALID",
      `${JSON.stringify(root)} cannot be a layer's directory`,
      {
        hint: "Choose an absolute path without spaces, commas, colons, quotes and backslashes.",
      },
    );
  }
  await mkdir(root, { recursive: true, mode: 0o711 });
}
