/** When each layer was last compared with its digests, over restarts. */
import type { DatabaseSync } from "node:sqlite";
import { openDatabase } from "../base/database.ts";
import type { Digest } from "../base/digest.ts";

const migrations = [
  `
  CREATE TABLE scrub (
    layer_digest TEXT PRIMARY KEY,
    checked_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
];

/** Owns its database; see the module. */
export class ScrubRecords {
  readonly #database: DatabaseSync;

  private constructor(database: DatabaseSync) {
    this.#database = database;
  }

  /** Opens the records at `path`, which are created if need be. */
  static open(path: string): ScrubRecords {
    return new ScrubRecords(openDatabase(path, migrations));
  }

  /**
   * When each of these layers was checked, in milliseconds since 1970; one that is new counts as
   * checked `now`, since it has just come. The others are forgotten.
   */
  checkedAt(layers: readonly Digest[], now: number): Map<Digest, number> {
    const known = new Map<string, number>();
    for (const row of this.#database.prepare("SELECT * FROM scrub").all()) {
      known.set(String(row["layer_digest"]), Number(row["checked_at"]));
    }
    const wanted = new Set<string>(layers);
    for (const digest of known.keys()) if (!wanted.has(digest)) this.#remove(digest);
    return new Map(
      layers.map((digest) => {
        const at = known.get(digest);
        // A clock that was set back must not keep a layer from being checked.
        if (at !== undefined && at <= now) return [digest, at];
        this.note(digest, now);
        return [digest, now];
      }),
    );
  }

  /** A layer was checked. */
  note(layerDigest: Digest, at: number): void {
    this.#database
      .prepare("INSERT OR REPLACE INTO scrub (layer_digest, checked_at) VALUES (?, ?)")
      .run(layerDigest, at);
  }

  close(): void {
    this.#database.close();
  }

  #remove(layerDigest: string): void {
    this.#database.prepare("DELETE FROM scrub WHERE layer_digest = ?").run(layerDigest);
  }
}
