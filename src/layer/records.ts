/** What this node durably knows of its layers. */
import type { DatabaseSync } from "node:sqlite";
import { openDatabase, transaction } from "../base/database.ts";
import type { Digest } from "../base/digest.ts";
import type { Repository } from "../registry/reference.ts";
import { joinPaths, splitPaths } from "./implied-directories.ts";
import type { LayerTarget } from "./target.ts";

/** A layer that was made ready on this node. */
export interface LayerRecord {
  /** Stable and never given to another layer. */
  number: number;
  diffId: Digest;
  /** The blob whose index divides the layer into spans, and that names its cache file. */
  layerDigest: Digest;
  /** Bytes of the uncompressed tar. */
  size: number;
  /** The layer hides everything below it, so its root is an opaque directory. */
  opaqueRoot: boolean;
  inodes: number;
  /** Parts of it can be had from a registry, as far as is known: what is lost of it is cheap. */
  ranges: boolean;
}

/** How a layer was last mounted: tells a mount that can be kept from one that cannot. */
export interface MountRecord {
  /** `major:minor` of the mounted file system. */
  device: string;
  /** `local`, or `major:minor` of the FUSE mount that its data comes from. */
  backing: string;
}

/** A blob in registries that holds a layer. */
export interface BlobRecord {
  layerDigest: Digest;
  compressedSize: number;
  mediaType: string;
  manifestDigest: Digest;
  /** Where it may be found, the one that had it last first. */
  repositories: Repository[];
}

const migrations = [
  `
  CREATE TABLE layer (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    diff_id TEXT NOT NULL UNIQUE,
    layer_digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    opaque_root INTEGER NOT NULL,
    inodes INTEGER NOT NULL,
    mount_device TEXT,
    mount_backing TEXT
  ) STRICT;
  CREATE TABLE blob (
    layer_digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    compressed_size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    manifest_digest TEXT NOT NULL
  ) STRICT;
  CREATE INDEX blob_by_diff_id ON blob (diff_id);
  CREATE TABLE location (
    layer_digest TEXT NOT NULL REFERENCES blob ON DELETE CASCADE,
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    rank INTEGER NOT NULL,
    PRIMARY KEY (layer_digest, host, name)
  ) STRICT;
  `,
  `
  CREATE TABLE implied_directories (
    number INTEGER PRIMARY KEY REFERENCES layer ON DELETE CASCADE,
    paths BLOB NOT NULL
  ) STRICT;
  `,
  `
  ALTER TABLE layer ADD COLUMN ranges INTEGER NOT NULL DEFAULT 1;
  CREATE TABLE former_number (
    number INTEGER PRIMARY KEY,
    diff_id TEXT NOT NULL
  ) STRICT;
  CREATE INDEX former_number_by_diff_id ON former_number (diff_id);
  CREATE TABLE distrusted_index (
    head_digest TEXT PRIMARY KEY
  ) STRICT;
  `,
];

/** The layers of this node, in one SQLite database. */
export class LayerRecords {
  readonly #database: DatabaseSync;

  private constructor(database: DatabaseSync) {
    this.#database = database;
  }

  /** Opens (or creates) the database at `path`. */
  static open(path: string): LayerRecords {
    return new LayerRecords(openDatabase(path, migrations));
  }

  all(): LayerRecord[] {
    return this.#database.prepare("SELECT * FROM layer ORDER BY number").all().map(asLayer);
  }

  /** The layer that has this number, or had it before it was condemned. */
  byNumber(number: number): LayerRecord | undefined {
    const diffId = this.diffIdOf(number);
    return diffId === undefined ? undefined : this.byDiffId(diffId);
  }

  /** What layer a number stands, or stood, for; also when there is no record of it now. */
  diffIdOf(number: number): Digest | undefined {
    const row = this.#database
      .prepare(
        `SELECT diff_id FROM layer WHERE number = ?1
         UNION SELECT diff_id FROM former_number WHERE number = ?1`,
      )
      .get(number);
    return row?.["diff_id"] as Digest | undefined;
  }

  byDiffId(diffId: Digest): LayerRecord | undefined {
    const row = this.#database.prepare("SELECT * FROM layer WHERE diff_id = ?").get(diffId);
    return row === undefined ? undefined : asLayer(row);
  }

  /**
   * Records a layer that is ready, its blob, and its directories without an entry of their own. A
   * layer that was known keeps its number.
   * @returns its number
   */
  put(
    target: LayerTarget,
    layer: Omit<LayerRecord, "number">,
    impliedDirectories: readonly Buffer[] = [],
  ): number {
    return transaction(this.#database, () => {
      const row = this.#database
        .prepare(
          `INSERT INTO layer (diff_id, layer_digest, size, opaque_root, inodes, ranges)
           VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT (diff_id) DO UPDATE SET layer_digest = excluded.layer_digest,
             size = excluded.size, opaque_root = excluded.opaque_root, inodes = excluded.inodes,
             ranges = excluded.ranges
           RETURNING number`,
        )
        .get(
          layer.diffId,
          layer.layerDigest,
          layer.size,
          layer.opaqueRoot ? 1 : 0,
          layer.inodes,
          layer.ranges ? 1 : 0,
        );
      const number = Number(row?.["number"]);
      this.#putImplied(number, impliedDirectories);
      this.#putBlob(target);
      return number;
    });
  }

  /** Directories of a layer without an entry of their own. */
  impliedDirectories(number: number): Buffer[] {
    const row = this.#database
      .prepare("SELECT paths FROM implied_directories WHERE number = ?")
      .get(number);
    const paths = row?.["paths"];
    return paths instanceof Uint8Array ? splitPaths(paths) : [];
  }

  /** Remembers another place, or another blob, that holds a layer; only new facts are written. */
  learn(target: LayerTarget): void {
    const known = this.blobs(target.diffId).find((blob) => blob.layerDigest === target.layerDigest);
    const isKnown = (repository: Repository) =>
      known?.repositories.some(
        ({ host, name }) => host === repository.host && name === repository.name,
      ) === true;
    if (known !== undefined && target.repositories.every(isKnown)) return;
    transaction(this.#database, () => {
      // The layer may have been let go: nothing is to be left of it.
      if (this.byDiffId(target.diffId) !== undefined) this.#putBlob(target);
    });
  }

  /** The blobs that hold a layer. */
  blobs(diffId: Digest): BlobRecord[] {
    const blobs = this.#database.prepare("SELECT * FROM blob WHERE diff_id = ?").all(diffId);
    const locations = this.#database.prepare(
      "SELECT host, name FROM location WHERE layer_digest = ? ORDER BY rank",
    );
    return blobs.map((row) => ({
      layerDigest: row["layer_digest"] as Digest,
      compressedSize: Number(row["compressed_size"]),
      mediaType: String(row["media_type"]),
      manifestDigest: row["manifest_digest"] as Digest,
      repositories: locations.all(String(row["layer_digest"])).map((location) => ({
        host: String(location["host"]),
        name: String(location["name"]),
      })),
    }));
  }

  /** Remembers that this repository had the blob: it is asked first from now on. */
  prefer(layerDigest: Digest, repository: Repository): void {
    this.#database
      .prepare(
        `UPDATE location SET rank = (SELECT min(rank) - 1 FROM location WHERE layer_digest = ?1)
         WHERE layer_digest = ?1 AND host = ?2 AND name = ?3`,
      )
      .run(layerDigest, repository.host, repository.name);
  }

  mountOf(number: number): MountRecord | undefined {
    const row = this.#database
      .prepare("SELECT mount_device, mount_backing FROM layer WHERE number = ?")
      .get(number);
    const device = row?.["mount_device"];
    const backing = row?.["mount_backing"];
    return typeof device === "string" && typeof backing === "string"
      ? { device, backing }
      : undefined;
  }

  /** Layers whose last mount has or had this backing. */
  mountsBackedBy(backing: string): number[] {
    const rows = this.#database
      .prepare("SELECT number FROM layer WHERE mount_backing = ?")
      .all(backing);
    return rows.map((row) => Number(row["number"]));
  }

  setMount(number: number, mount: MountRecord): void {
    // It need not be on disk: mounts do not survive what this would not survive.
    this.#database.exec("PRAGMA synchronous = NORMAL");
    try {
      this.#database
        .prepare("UPDATE layer SET mount_device = ?, mount_backing = ? WHERE number = ?")
        .run(mount.device, mount.backing, number);
    } finally {
      this.#database.exec("PRAGMA synchronous = FULL");
    }
  }

  /** Remembers whether parts of the layer can be had from a registry. */
  setRanges(number: number, ranges: boolean): void {
    this.#database
      .prepare("UPDATE layer SET ranges = ? WHERE number = ?")
      .run(ranges ? 1 : 0, number);
  }

  /** Forgets a layer and, unless it has former numbers, its blobs. */
  remove(number: number): void {
    transaction(this.#database, () => {
      const diffId = this.diffIdOf(number);
      this.#database.prepare("DELETE FROM layer WHERE number = ?").run(number);
      if (diffId !== undefined) this.#removeUnusedBlobs(diffId);
    });
  }

  /**
   * Forgets a layer that was made from an index that lied. Its blobs stay known, so that it can be
   * made ready anew under another number; the old one leads there.
   * @param headDigest digest of the head of the index, which is not used again
   */
  condemn(number: number, headDigest: Digest): void {
    transaction(this.#database, () => {
      this.#database
        .prepare(
          `INSERT INTO former_number (number, diff_id)
           SELECT number, diff_id FROM layer WHERE number = ?`,
        )
        .run(number);
      this.#database.prepare("DELETE FROM layer WHERE number = ?").run(number);
      this.distrust(headDigest);
    });
  }

  /** The former numbers of all layers, or of one. */
  formerNumbers(diffId?: Digest): number[] {
    const rows = this.#database
      .prepare("SELECT number FROM former_number WHERE ?1 IS NULL OR diff_id = ?1 ORDER BY number")
      .all(diffId ?? null);
    return rows.map((row) => Number(row["number"]));
  }

  /** Nobody refers to a layer by this former number any more. */
  forgetFormerNumber(number: number): void {
    transaction(this.#database, () => {
      const diffId = this.diffIdOf(number);
      this.#database.prepare("DELETE FROM former_number WHERE number = ?").run(number);
      if (diffId !== undefined) this.#removeUnusedBlobs(diffId);
    });
  }

  /** The index with this head is not used again. */
  distrust(headDigest: Digest): void {
    this.#database
      .prepare("INSERT OR IGNORE INTO distrusted_index (head_digest) VALUES (?)")
      .run(headDigest);
  }

  /** Whether the index with this head has misled this node. */
  isDistrusted(headDigest: Digest): boolean {
    const row = this.#database
      .prepare("SELECT 1 FROM distrusted_index WHERE head_digest = ?")
      .get(headDigest);
    return row !== undefined;
  }

  /** An index that was made from the whole layer turned out to be this one. */
  trust(headDigest: Digest): void {
    if (!this.isDistrusted(headDigest)) return;
    this.#database.prepare("DELETE FROM distrusted_index WHERE head_digest = ?").run(headDigest);
  }

  close(): void {
    this.#database.close();
  }

  #removeUnusedBlobs(diffId: Digest): void {
    if (this.byDiffId(diffId) !== undefined || this.formerNumbers(diffId).length > 0) return;
    this.#database.prepare("DELETE FROM blob WHERE diff_id = ?").run(diffId);
  }

  #putImplied(number: number, paths: readonly Buffer[]): void {
    if (paths.length === 0) {
      this.#database.prepare("DELETE FROM implied_directories WHERE number = ?").run(number);
      return;
    }
    this.#database
      .prepare("INSERT OR REPLACE INTO implied_directories (number, paths) VALUES (?, ?)")
      .run(number, joinPaths(paths));
  }

  #putBlob(target: LayerTarget): void {
    this.#database
      .prepare(
        `INSERT INTO blob (layer_digest, diff_id, compressed_size, media_type, manifest_digest)
         VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
      )
      .run(
        target.layerDigest,
        target.diffId,
        target.compressedSize,
        target.mediaType,
        target.manifestDigest,
      );
    const insert = this.#database.prepare(
      `INSERT INTO location (layer_digest, host, name, rank) VALUES (?1, ?2, ?3,
         (SELECT coalesce(max(rank), 0) + 1 FROM location WHERE layer_digest = ?1))
       ON CONFLICT DO NOTHING`,
    );
    for (const { host, name } of target.repositories) insert.run(target.layerDigest, host, name);
  }
}

function asLayer(row: Record<string, unknown>): LayerRecord {
  return {
    number: Number(row["number"]),
    diffId: row["diff_id"] as Digest,
    layerDigest: row["layer_digest"] as Digest,
    size: Number(row["size"]),
    opaqueRoot: row["opaque_root"] === 1,
    inodes: Number(row["inodes"]),
    ranges: row["ranges"] === 1,
  };
}
