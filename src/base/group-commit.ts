/** Changes of a database that come at the same time go to disk together. */
import type { DatabaseSync } from "node:sqlite";
import { transaction } from "./database.ts";

interface Change {
  work: () => void;
  resolve: () => void;
  reject: (error: unknown) => void;
}

/**
 * Gathers the changes of one turn of the event loop into one transaction: syncing the disk takes most
 * of the time of a change, and takes no longer for many of them.
 */
export class GroupCommit {
  readonly #database: DatabaseSync;
  readonly #onLost: () => void;
  #waiting: Change[] = [];
  #last: Promise<void> = Promise.resolve();

  /**
   * `onLost` is called when a change could not be made, before whoever wanted it learns of that. What
   * it throws is not caught: it ends the process.
   */
  constructor(database: DatabaseSync, onLost: () => void) {
    this.#database = database;
    this.#onLost = onLost;
  }

  /**
   * Has `work` done in the next transaction, after what was added before. It may be run several
   * times, so it must do nothing but change the database.
   * @returns when it is on disk
   * @throws what `work` throws, ClipError DISK_FULL, SYSTEM_CALL
   */
  add(work: () => void): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    if (this.#waiting.length === 0) setImmediate(() => this.flush());
    this.#waiting.push({ work, resolve, reject });
    this.#last = promise.catch(() => {});
    return promise;
  }

  /** Waits until everything that was added by now is on disk, or has failed. */
  settled(): Promise<void> {
    return this.#last;
  }

  /** Does now what waits. */
  flush(): void {
    const changes = this.#waiting;
    this.#waiting = [];
    if (changes.length === 0) return;
    try {
      transaction(this.#database, () => {
        for (const { work } of changes) work();
      });
    } catch {
      this.#doOneByOne(changes);
      return;
    }
    for (const { resolve } of changes) resolve();
  }

  /** One that fails must not keep the others from being made. */
  #doOneByOne(changes: readonly Change[]): void {
    const failed: (() => void)[] = [];
    for (const { work, resolve, reject } of changes) {
      try {
        transaction(this.#database, work);
        resolve();
      } catch (error) {
        failed.push(() => reject(error));
      }
    }
    if (failed.length === 0) return;
    try {
      this.#onLost();
    } finally {
      for (const reject of failed) reject();
    }
  }
}
