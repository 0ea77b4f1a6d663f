/** Opening the small SQLite databases in which clip keeps what must survive a crash. */
import { chmodSync, closeSync, openSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";

/**
 * Opens (or creates) a database whose commits are on disk when they return, and brings its schema
 * up to date: `migrations[n]` leads from version n to n + 1. Only its owner may read it.
 */
export function openDatabase(path: string, migrations: readonly string[]): DatabaseSync {
  makePrivate(path);
  const database = new DatabaseSync(path);
  // WAL with FULL syncs the log at each commit, so a commit survives a crash and a power cut.
  database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;");
  const row = database.prepare("PRAGMA user_version").get();
  const version = Number(row?.["user_version"] ?? 0);
  for (let at = version; at < migrations.length; at++) {
    database.exec(`BEGIN IMMEDIATE; ${migrations[at]}; PRAGMA user_version = ${at + 1}; COMMIT;`);
  }
  return database;
}

/** Runs `work` in one transaction: all of it is on disk when this returns, or none of it. */
export function transaction<Value>(database: DatabaseSync, work: () => Value): Value {
  database.exec("BEGIN IMMEDIATE");
  try {
    const value = work();
    database.exec("COMMIT");
    return value;
  } catch (error) {
    database.exec("ROLLBACK");
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
