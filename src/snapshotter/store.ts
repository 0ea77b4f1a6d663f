/**
 * The durable table of snapshots. All of it is mirrored in memory, so that reading never waits. A
 * change is seen at once, in the order of the calls, and is on disk when its promise is fulfilled;
 * if it cannot be brought there, the mirror is made anew from what is.
 */
import type { DatabaseSync, SQLInputValue } from "node:sqlite";
import { openDatabase } from "../base/database.ts";
import { ClipError } from "../base/errors.ts";
import { GroupCommit } from "../base/group-commit.ts";
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
  readonly #changes: GroupCommit;
  #table = new SnapshotTable();
  #lastId: number;

  private constructor(database: DatabaseSync) {
    this.#database = database;
    this.#changes = new GroupCommit(database, () => this.#read());
    this.#lastId = readLastId(database);
    this.#read();
  }

  /** Opens the table at `path`, or makes a new one. */
  static open(path: string): SnapshotStore {
    return new SnapshotStore(openDatabase(path, migrations));
  }

  close(): void {
    this.#changes.flush();
    this.#database.close();
  }

  /** Waits until what can be seen is on disk. */
  settled(): Promise<void> {
    return this.#changes.settled();
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
  async create(request: CreateRequest): Promise<Snapshot> {
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
  async createRemote(request: RemoteRequest): Promise<Snapshot> {
    const existing = this.findRemote(request.parent, request.ref);
    if (existing !== undefined) {
      await this.settled();
      // One that could not be brought to disk is gone again.
      const isThere = this.#table.get(existing.name)?.id === existing.id;
      return isThere ? existing : this.createRemote(request);
    }
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
  async commit(request: CommitRequest): Promise<Snapshot> {
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
  async setLabels(name: string, labels: Labels): Promise<Snapshot> {
    const snapshot = this.get(name);
    const updatedAt = wallClockNanoseconds();
    return this.#replace(snapshot, { ...snapshot, labels: stored(labels), updatedAt });
  }

  /** Keeps what a committed snapshot was measured to take up, if it still is what it was. */
  async setUsage(snapshot: Snapshot, usage: SnapshotUsage): Promise<void> {
    const current = this.#table.get(snapshot.name);
    if (current?.id !== snapshot.id) return;
    await this.#replace(current, { ...current, usage });
  }

  /**
   * Forgets a snapshot.
   * @throws ClipError SNAPSHOT_NOT_FOUND, SNAPSHOT_PRECONDITION when it has children
   */
  async remove(name: string): Promise<Snapshot> {
    const snapshot = this.get(name);
    if (this.#table.hasChildren(name)) {
      // containerd and its tests know this failure by the word "remove".
      throw new ClipError("SNAPSHOT_PRECONDITION", `cannot remove ${quote(name)}: it has children`);
    }
    this.#table.delete(snapshot);
    await this.#change(snapshot, "DELETE FROM snapshots WHERE id = ?", [snapshot.id]);
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

  async #insert(snapshot: Snapshot): Promise<Snapshot> {
    this.#table.set(snapshot);
    await this.#change(
      snapshot,
      `INSERT INTO snapshots (name, parent, kind, labels, created, updated, layer, bytes, inodes, id)
       VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
      columns(snapshot),
    );
    return snapshot;
  }

  async #replace(before: Snapshot, after: Snapshot): Promise<Snapshot> {
    this.#table.delete(before);
    this.#table.set(after);
    await this.#change(
      before,
      `UPDATE snapshots SET name = ?, parent = ?, kind = ?, labels = ?, created = ?,
         updated = ?, layer = ?, bytes = ?, inodes = ? WHERE id = ?`,
      columns(after),
    );
    return after;
  }

  #change({ name }: Snapshot, sql: string, values: SQLInputValue[]): Promise<void> {
    return this.#changes.add(() => {
      const { changes } = this.#database.prepare(sql).run(...values);
      if (Number(changes) === 1) return;
      // A change before this one could not be made.
      throw new ClipError("SNAPSHOT_NOT_FOUND", `snapshot ${quote(name)} does not exist`);
    });
  }

  #read(): void {
    const table = new SnapshotTable();
    for (const snapshot of readSnapshots(this.#database)) table.set(snapshot);
    this.#table = table;
  }
}

/** Labels as they are kept: an empty value means that there is no such label. */
function stored(labels: Labels): Labels {
  return new Map([...labels].filter(([, value]) => value !== ""));
}

function columns(snapshot: Snapshot): SQLInputValue[] {
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
