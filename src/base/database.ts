/** Opening the small SQLite databases in which clip keeps what must survive a crash. */
import { chmodSync, closeSync, openSync, statSync } from "node:fs";
import { DatabaseSync, type StatementSync } from "node:sqlite";
import { ClipError, isClipError } from "./errors.ts";

/**
 * Opens (or creates) a database whose commits are on disk when they return, and brings its schema
 * up to date: `migrations[n]` leads from version n to n + 1. Only its owner may read it. From then on
 * whatever the disk refuses or has damaged is a ClipError: DISK_FULL or SYSTEM_CALL.
 * @throws ClipError DISK_FULL, SYSTEM_CALL
 */
export function openDatabase(path: string, migrations: readonly string[]): DatabaseSync {
  makePrivate(path);
  const database = new DiskDatabase(path);
  try {
    prepareDatabase(database, path, migrations);
    return database;
  } catch (error) {
    database.close();
    throw error;
  }
}

function prepareDatabase(
  database: DatabaseSync,
  path: string,
  migrations: readonly string[],
): void {
  // WAL with FULL syncs the log at each commit, so a commit survives a crash and a power cut.
  database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;");
  const row = database.prepare("PRAGMA user_version").get();
  const version = Number(row?.["user_version"] ?? 0);
  for (let at = version; at < migrations.length; at++) {
    database.exec(`BEGIN IMMEDIATE; ${migrations[at]}; PRAGMA user_version = ${at + 1}; COMMIT;`);
  }
  reserveRoom(database, path);
}

/**
 * Runs `work` in one transaction: all of it is on disk when this returns, or none of it. It may be
 * run twice, since a full disk can have room the second time.
 */
export function transaction<Value>(database: DatabaseSync, work: () => Value): Value {
  return withRoom(database, () => transactionOnce(database, work));
}

function transactionOnce<Value>(database: DatabaseSync, work: () => Value): Value {
  database.exec("BEGIN IMMEDIATE");
  try {
    const value = work();
    database.exec("COMMIT");
    return value;
  } catch (error) {
    // Some failures have ended it already.
    if (database.isTransaction) database.exec("ROLLBACK");
    throw error;
  }
}

/** What stays free in a database and its log, for the changes by which a full disk gets room again. */
const reservedBytes = 128 * 1024;

/** Has the files of a database grow beyond what is in them, unless its log was left by a crash. */
function reserveRoom(database: DatabaseSync, path: string): void {
  if (sizeOf(`${path}-wal`) >= reservedBytes) return;
  try {
    // A crash, or a disk that has just become full, may have left the table.
    database.exec(
      `BEGIN; DROP TABLE IF EXISTS room; CREATE TABLE room (bytes BLOB);
       INSERT INTO room VALUES (zeroblob(${reservedBytes})); COMMIT;
       DROP TABLE room; PRAGMA wal_checkpoint(RESTART)`,
    );
  } catch (error) {
    if (database.isTransaction) database.exec("ROLLBACK");
    // Nothing but the reserve is missing.
    if (!isClipError(error, "DISK_FULL")) throw error;
  }
}

/** Does `work`; when the disk is full it does it again in the room that the log has already. */
function withRoom<Value>(database: DatabaseSync, work: () => Value): Value {
  try {
    return work();
  } catch (error) {
    if (!isClipError(error, "DISK_FULL") || database.isTransaction) throw error;
    database.exec("PRAGMA wal_checkpoint(RESTART)");
    return work();
  }
}

function sizeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.size ?? 0;
}

/** A database that says of the disk's failures what they are. */
class DiskDatabase extends DatabaseSync {
  readonly #path: string;

  constructor(path: string) {
    super(path);
    this.#path = path;
  }

  override exec(sql: string): void {
    attempt(this.#path, () => super.exec(sql));
  }

  override prepare(sql: string): StatementSync {
    const statement = attempt(this.#path, () => super.prepare(sql));
    const guarded =
      (call: (...parameters: never[]) => unknown) =>
      (...parameters: never[]) =>
        attempt(this.#path, () => call(...parameters));
    const run = guarded(statement.run.bind(statement));
    Object.assign(statement, {
      run: (...parameters: never[]) => withRoom(this, () => run(...parameters)),
      get: guarded(statement.get.bind(statement)),
      all: guarded(statement.all.bind(statement)),
    });
    return statement;
  }
}

// Result codes of SQLite (its extended ones have them in the lowest byte).
const SQLITE_READONLY = 8;
const SQLITE_IOERR = 10;
const SQLITE_CORRUPT = 11;
const SQLITE_FULL = 13;
const SQLITE_CANTOPEN = 14;
const SQLITE_NOTADB = 26;

function attempt<Value>(path: string, work: () => Value): Value {
  try {
    return work();
  } catch (error) {
    const extended = error instanceof Error && "errcode" in error ? Number(error.errcode) : 0;
    const code = extended & 0xff;
    if (code === SQLITE_FULL) {
      throw new ClipError("DISK_FULL", `there is no room to write ${path}`, {
        hint: "Free space on its disk, or remove images that are no longer needed.",
        cause: error,
      });
    }
    if (code === SQLITE_READONLY || code === SQLITE_IOERR || code === SQLITE_CANTOPEN) {
      throw new ClipError("SYSTEM_CALL", `${path} cannot be read or written`, {
        hint: "The kernel's log may tell whether the disk or its file system has failed.",
        cause: error,
      });
    }
    if (code === SQLITE_CORRUPT || code === SQLITE_NOTADB) {
      throw new ClipError("SYSTEM_CALL", `the database ${path} is damaged`, {
        hint: "Stop the daemon and run `clip doctor --repair`: it saves the rows that can be read.",
        cause: error,
      });
    }
    throw error;
  }
}

// SQLite gives its log and its shared memory the mode of the database itself. A database that exists
// must not be opened here: closing it again would take the locks of another connection with it.
function makePrivate(path: string): void {
  ignoring("EEXIST", () => closeSync(openSync(path, "wx", 0o600)));
  for (const suffix of ["", "-wal", "-shm"]) {
    ignoring("ENOENT", () => chmodSync(path + suffix, 0o600));
  }
}

function ignoring(code: string, work: () => void): void {
  try {
    work();
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === code)) throw error;
  }
}
