/**
 * The durable table of snapshots. All of it is mirrored in memory, so that reading never waits;
 * each change is on disk before its method returns.
 */
import type { DatabaseSync } from "node:sqlite";
import { openDatabase } from "../base/database.ts";
import { ClipError } from "../base/errors.ts";
import { wallClockNanoseconds } from "../os/libc.ts";
import { SnapshotTable } from "./snapshot-table.ts";
import { refLabel, type Labels, type Snapshot, type SnapshotUsage } from "./snapshot.ts";

/** What a new active or view snapshot is made from. */
export interface CreateRequest {
  /** From {@link SnapshotStore.allocateId}. */
  id: number;
  key: string;
  kind: "active" | "view";
  /** "" for none. */
  parent: string;
  labels: Labels;
}

/** What turns an active snapshot into a committed one. */
export interface CommitRequest {
  key: string;
  name: string;
  labels: Labels;
  /** Only for an active snapshot without a parent: the one to get (containerd's "rebase"). */
  parent: string;
}

/** A committed snapshot whose content is a layer that is served on demand. */
export interface RemoteRequest {
  /** "" for none. */
  parent: string;
  /** The chainID under which it is found. */
  ref: string;
  labels: Labels;
  /** Number of the layer. */
  layer: number;
}

const migrations = [
  `CREATE TABLE snapshots (
     id INTEGER PRIMARY KEY AUTOINCREMENT,
     name TEXT NOT NULL UNIQUE,
     parent TEXT REFERENCES snapshots (name),
     kind TEXT NOT NULL CHECK (kind IN ('active', 'view', 'committed')),
     labels TEXT NOT NULL,
     created INTEGER NOT NULL,
     updated INTEGER NOT NULL,
     layer INTEGER,
     bytes INTEGER,
     inodes INTEGER
   ) STRICT;
   CREATE INDEX snapshots_parent ON snapshots (parent)`,
];

/** The snapshots of one clip. */
export class SnapshotStore {
  readonly #database: DatabaseSync;
  readonly #table = new SnapshotTable();
  #lastId: number;

  private constructor(database: DatabaseSync) {
    this.#database = database;
    this.#lastId = readLastId(database);
    for (const snapshot of readSnapshots(database)) this.#table.set(snapshot);
  }

  /** Opens the table at `path`, or makes a new one. */
  static open(path: string): SnapshotStore {
    return new SnapshotStore(openDatabase(path, migrations));
  }

  close(): void {
    this.#database.close();
  }

  /** An id that no snapshot has had. Lost if no snapshot is created with it. */
  allocateId(): number {
    return ++this.#lastId;
  }

  /** The snapshot of that name, if there is one. */
  find(name: string): Snapshot | undefined {
    return this.#table.get(name);
  }

  /** @throws ClipError SNAPSHOT_NOT_FOUND */
  get(name: string): Snapshot {
    const snapshot = this.#table.get(name);
    if (snapshot === undefined) {
      throw new ClipError("SNAPSHOT_NOT_FOUND", `snapshot ${quote(name)} does not exist`);
    }
    return snapshot;
  }

  /** All snapshots as they are now. */
  all(): Snapshot[] {
    return this.#table.all();
  }

  /** All snapshots, of whatever kind, with this parent and this ref label. */
  findByRef(parent: string, ref: string): Snapshot[] {
    return this.#table.findByRef(parent, ref);
  }

  /** The committed remote snapshot for (parent, ref), if there is one. */
  findRemote(parent: string, ref: string): Snapshot | undefined {
    return this.findByRef(parent, ref).find((snapshot) => snapshot.layer !== undefined);
  }

  /** The snapshots below `snapshot`, its parent first. */
  ancestors(snapshot: Snapshot): Snapshot[] {
    const ancestors: Snapshot[] = [];
    for (let at = snapshot.parent; at !== "";) {
      const ancestor = this.get(at);
      ancestors.push(ancestor);
      at = ancestor.parent;
    }
    return ancestors;
  }

  /** Numbers of the layers that snapshots refer to. */
  layers(): number[] {
    return this.#table.layers();
  }

  /** How many snapshots refer to a layer. */
  layerReferences(layer: number): number {
    return this.#table.layerReferences(layer);
  }

  /**
   * Whether a snapshot could be created now.
   * @returns the parent, undefined if none is asked for
   * @throws ClipError SNAPSHOT_EXISTS, SNAPSHOT_NOT_FOUND for the parent, ARGUMENT_INVALID
   */
  checkCreate(key: string, parent: string): Snapshot | undefined {
    this.#checkFree(key);
    return this.#committedParent(parent, "ARGUMENT_INVALID");
  }

  /** Records a new active or view snapshot. @throws as {@link checkCreate} */
  create(request: CreateRequest): Snapshot {
    this.checkCreate(request.key, request.parent);
    const now = wallClockNanoseconds();
    return this.#insert({
      id: request.id,
      name: request.key,
      parent: request.parent,
      kind: request.kind,
      labels: stored(request.labels),
      createdAt: now,
      updatedAt: now,
      layer: undefined,
      usage: undefined,
    });
  }

  /**
   * Records a committed remote snapshot under a name of its own, or finds the one that exists.
   * @throws ClipError SNAPSHOT_NOT_FOUND for the parent, ARGUMENT_INVALID
   */
  createRemote(request: RemoteRequest): Snapshot {
    const existing = this.findRemote(request.parent, request.ref);
    if (existing !== undefined) return existing;
    this.#committedParent(request.parent, "ARGUMENT_INVALID");
    const now = wallClockNanoseconds();
    const id = this.allocateId();
    // containerd's keys have three parts, so the two of this name never collide with one.
    return this.#insert({
      id,
      name: `remote/${id}`,
      parent: request.parent,
      kind: "committed",
      labels: stored(new Map([...request.labels, [refLabel, request.ref]])),
      createdAt: now,
      updatedAt: now,
      layer: request.layer,
      usage: undefined,
    });
  }

  /**
   * Commits an active snapshot: it gets a name, the request's labels instead of its own, and new
   * times; its id stays.
   * @throws ClipError SNAPSHOT_EXISTS, SNAPSHOT_NOT_FOUND, SNAPSHOT_PRECONDITION, ARGUMENT_INVALID
   */
  commit(request: CommitRequest): Snapshot {
    this.#checkFree(request.name);
    const active = this.get(request.key);
    if (active.kind !== "active") {
      throw new ClipError(
        "SNAPSHOT_PRECONDITION",
        `snapshot ${quote(request.key)} is ${active.kind}, not active`,
      );
    }
    if (request.parent !== "" && request.parent !== active.parent) {
      if (active.parent !== "") {
        throw new ClipError(
          "ARGUMENT_INVALID",
          `snapshot ${quote(request.key)} has a parent already`,
        );
      }
      this.#committedParent(request.parent, "SNAPSHOT_PRECONDITION");
    }
    const now = wallClockNanoseconds();
    return this.#replace(active, {
      ...active,
      name: request.name,
      parent: request.parent === "" ? active.parent : request.parent,
      kind: "committed",
      labels: stored(request.labels),
      createdAt: now,
      updatedAt: now,
    });
  }

  /**
   * Replaces the labels of a snapshot. Labels without a value are left out.
   * @throws ClipError SNAPSHOT_NOT_FOUND
   */
  setLabels(name: string, labels: Labels): Snapshot {
    const snapshot = this.get(name);
    const updatedAt = wallClockNanoseconds();
    return this.#replace(snapshot, { ...snapshot, labels: stored(labels), updatedAt });
  }

  /** Keeps what a committed snapshot was measured to take up, if it still is what it was. */
  setUsage(snapshot: Snapshot, usage: SnapshotUsage): void {
    const current = this.#table.get(snapshot.name);
    if (current?.id !== snapshot.id) return;
    // It need not be on disk: it can be measured again.
    this.#database.exec("PRAGMA synchronous = NORMAL");
    try {
      this.#replace(current, { ...current, usage });
    } finally {
      this.#database.exec("PRAGMA synchronous = FULL");
    }
  }

  /**
   * Forgets a snapshot.
   * @throws ClipError SNAPSHOT_NOT_FOUND, SNAPSHOT_PRECONDITION when it has children
   */
  remove(name: string): Snapshot {
    const snapshot = this.get(name);
    if (this.#table.hasChildren(name)) {
      // containerd and its tests know this failure by the word "remove".
      throw new ClipError("SNAPSHOT_PRECONDITION", `cannot remove ${quote(name)}: it has children`);
    }
    this.#database.prepare("DELETE FROM snapshots WHERE id = ?").run(snapshot.id);
    this.#table.delete(snapshot);
    return snapshot;
  }

  #checkFree(name: string): void {
    // SQLite ends a text at a NUL.
    if (name === "" || name.includes("\0")) {
      throw new ClipError("ARGUMENT_INVALID", "a snapshot's name must not be empty or have a NUL");
    }
    if (this.#table.get(name) !== undefined) {
      throw new ClipError("SNAPSHOT_EXISTS", `snapshot ${quote(name)} exists`);
    }
  }

  #committedParent(
    name: string,
    otherwise: "ARGUMENT_INVALID" | "SNAPSHOT_PRECONDITION",
  ): Snapshot | undefined {
    if (name === "") return undefined;
    const parent = this.#table.get(name);
    if (parent === undefined) {
      throw new ClipError("SNAPSHOT_NOT_FOUND", `parent snapshot ${quote(name)} does not exist`);
    }
    if (parent.kind !== "committed") {
      throw new ClipError(otherwise, `parent snapshot ${quote(name)} is not committed`);
    }
    return parent;
  }

  #insert(snapshot: Snapshot): Snapshot {
    this.#database
      .prepare(
        `INSERT INTO snapshots (name, parent, kind, labels, created, updated, layer, bytes, inodes, id)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      )
      .run(...columns(snapshot));
    this.#table.set(snapshot);
    return snapshot;
  }

  #replace(before: Snapshot, after: Snapshot): Snapshot {
    this.#database
      .prepare(
        `UPDATE snapshots SET name = ?, parent = ?, kind = ?, labels = ?, created = ?,
           updated = ?, layer = ?, bytes = ?, inodes = ? WHERE id = ?`,
      )
      .run(...columns(after));
    this.#table.delete(before);
    this.#table.set(after);
    return after;
  }
}

/** Labels as they are kept: an empty value means that there is no such label. */
function stored(labels: Labels): Labels {
  return new Map([...labels].filter(([, value]) => value !== ""));
}

function columns(snapshot: Snapshot): (string | number | bigint | null)[] {
  return [
    snapshot.name,
    snapshot.parent === "" ? null : snapshot.parent,
    snapshot.kind,
    JSON.stringify([...snapshot.labels]),
    snapshot.createdAt,
    snapshot.updatedAt,
    snapshot.layer ?? null,
    snapshot.usage?.bytes ?? null,
    snapshot.usage?.inodes ?? null,
    snapshot.id,
  ];
}

function readLastId(database: DatabaseSync): number {
  const row = database.prepare("SELECT seq FROM sqlite_sequence WHERE name = 'snapshots'").get();
  return Number(row?.["seq"] ?? 0);
}

function* readSnapshots(database: DatabaseSync): Generator<Snapshot> {
  const statement = database.prepare("SELECT * FROM snapshots");
  statement.setReadBigInts(true);
  for (const row of statement.iterate()) {
    const { bytes, inodes, layer } = row;
    yield {
      id: Number(row["id"]),
      name: String(row["name"]),
      parent: row["parent"] === null ? "" : String(row["parent"]),
      kind: row["kind"] as Snapshot["kind"],
      labels: new Map(JSON.parse(String(row["labels"])) as [string, string][]),
      createdAt: row["created"] as bigint,
      updatedAt: row["updated"] as bigint,
      layer: layer === null ? undefined : Number(layer),
      usage: bytes === null ? undefined : { bytes: Number(bytes), inodes: Number(inodes) },
    };
  }
}

function quote(name: string): string {
  return JSON.stringify(name);
}
