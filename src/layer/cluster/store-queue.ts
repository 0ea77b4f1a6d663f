/**
 * What is to be stored in the content cache, on disk: it survives restarts and crashes. It remembers
 * what is settled, too, so that a layer whose completion a crash cut off is found.
 */
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
  `
  CREATE TABLE settled (layer_digest TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
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
    this.#layers ??= new Set(this.#digests("store"));
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
      this.#database.prepare("DELETE FROM settled WHERE layer_digest = ?").run(layer.layerDigest);
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
      for (const entry of oldest) this.#settle(entry);
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

  /** The layer has been stored, need not be, or is given up. */
  settle(layer: SharedLayer): void {
    this.#layers = undefined;
    transaction(this.#database, () => this.#settle(layer));
  }

  /** Those of a node's layers that neither wait nor are settled; what has gone is forgotten. */
  unsettled(layers: readonly SharedLayer[]): SharedLayer[] {
    return transaction(this.#database, () => {
      const known = new Set(layers.map(({ layerDigest }) => layerDigest));
      const settled = new Set(this.#digests("settled"));
      const forget = this.#database.prepare("DELETE FROM settled WHERE layer_digest = ?");
      for (const digest of settled) if (!known.has(digest)) forget.run(digest);
      const done = new Set([...settled, ...this.#digests("store")]);
      return layers.filter(({ layerDigest }) => !done.has(layerDigest));
    });
  }

  close(): void {
    this.#database.close();
  }

  #settle({ layerDigest }: SharedLayer): void {
    this.#database.prepare("DELETE FROM store WHERE layer_digest = ?").run(layerDigest);
    this.#database.prepare("INSERT OR IGNORE INTO settled VALUES (?)").run(layerDigest);
  }

  #digests(table: "store" | "settled"): Digest[] {
    const rows = this.#database.prepare(`SELECT layer_digest FROM ${table}`).all();
    return rows.map((row) => parseDigest(String(row["layer_digest"])));
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
