/** What is to be stored in the content cache, on disk: it survives restarts and crashes. */
import type { DatabaseSync } from "node:sqlite";
import { openDatabase, transaction } from "../../base/database.ts";
import { parseDigest, type Digest } from "../../base/digest.ts";
import type { SharedLayer } from "./cluster-options.ts";

/** A layer that waits to be stored. */
export interface QueuedStore extends SharedLayer {
  /** Put it in place of what is there. */
  replace: boolean;
  /** When it was asked for, and when it is to be tried; milliseconds since the epoch. */
  queuedAt: number;
  dueAt: number;
  /** Attempts that failed. */
  attempts: number;
}

const migrations = [
  `
  CREATE TABLE store (
    layer_digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    size INTEGER NOT NULL,
    replace INTEGER NOT NULL,
    queued_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX store_due ON store (due_at);
  `,
];

/** Owns its database; see the module. */
export class StoreQueue {
  readonly #database: DatabaseSync;
  readonly #lengthMax: number;
  /** As they were when they were last asked for; undefined since something has changed. */
  #layers: ReadonlySet<Digest> | undefined;

  private constructor(database: DatabaseSync, lengthMax: number) {
    this.#database = database;
    this.#lengthMax = lengthMax;
  }

  /** Opens the queue at `path`, which is created if need be; it keeps at most so many layers. */
  static open(path: string, lengthMax: number): StoreQueue {
    return new StoreQueue(openDatabase(path, migrations), lengthMax);
  }

  /** How many layers wait. */
  get length(): number {
    const row = this.#database.prepare("SELECT count(*) AS count FROM store").get();
    return Number(row?.["count"] ?? 0);
  }

  /** Digests of all layers that wait. */
  layers(): ReadonlySet<Digest> {
    this.#layers ??= new Set(this.all().map(({ layerDigest }) => layerDigest));
    return this.#layers;
  }

  /** All layers that wait. */
  all(): QueuedStore[] {
    return this.#database.prepare("SELECT * FROM store").all().map(toQueued);
  }

  /**
   * Puts a layer into the queue; one that is there already becomes due.
   * @returns layers that had to make room: those that have waited longest
   */
  add(layer: SharedLayer, replace: boolean, now: number): QueuedStore[] {
    this.#layers = undefined;
    return transaction(this.#database, () => {
      this.#database
        .prepare(
          `INSERT INTO store VALUES (?, ?, ?, ?, ?, ?, 0)
           ON CONFLICT DO UPDATE SET due_at = excluded.due_at, replace = max(replace, excluded.replace)`,
        )
        .run(layer.layerDigest, layer.diffId, layer.size, replace ? 1 : 0, now, now);
      const excess = Math.max(0, this.length - this.#lengthMax);
      const oldest = this.#database
        .prepare("SELECT * FROM store WHERE layer_digest <> ? ORDER BY queued_at LIMIT ?")
        .all(layer.layerDigest, excess)
        .map(toQueued);
      for (const entry of oldest) this.remove(entry);
      return oldest;
    });
  }

  /** The layer that is due first. */
  first(): QueuedStore | undefined {
    const row = this.#database.prepare("SELECT * FROM store ORDER BY due_at LIMIT 1").get();
    return row === undefined ? undefined : toQueued(row);
  }

  /** Has a layer tried again later. */
  postpone({ layerDigest }: SharedLayer, dueAt: number): void {
    this.#database
      .prepare("UPDATE store SET due_at = ?, attempts = attempts + 1 WHERE layer_digest = ?")
      .run(dueAt, layerDigest);
  }

  /** The layer has been stored, or is given up. */
  remove({ layerDigest }: SharedLayer): void {
    this.#layers = undefined;
    this.#database.prepare("DELETE FROM store WHERE layer_digest = ?").run(layerDigest);
  }

  close(): void {
    this.#database.close();
  }
}

function toQueued(row: Record<string, unknown>): QueuedStore {
  return {
    layerDigest: parseDigest(String(row["layer_digest"])),
    diffId: parseDigest(String(row["diff_id"])),
    size: Number(row["size"]),
    replace: row["replace"] === 1,
    queuedAt: Number(row["queued_at"]),
    dueAt: Number(row["due_at"]),
    attempts: Number(row["attempts"]),
  };
}
