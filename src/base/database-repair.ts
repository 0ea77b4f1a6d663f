/** Finding out whether a database is damaged, and saving what of it can be read. */
import { existsSync, linkSync, renameSync, rmSync } from "node:fs";
import { DatabaseSync } from "node:sqlite";

const suffixes = ["", "-wal", "-shm"];
const complaintsMax = 5;

/** What is wrong with a database, in SQLite's words; empty when it is well. */
export function databaseComplaints(path: string): string[] {
  try {
    const database = new DatabaseSync(path, { readOnly: true });
    try {
      const rows = database.prepare(`PRAGMA integrity_check(${complaintsMax})`).all();
      const said = rows.map((row) => String(row["integrity_check"]).replace(/\s+/g, " "));
      return said.filter((line) => line !== "ok");
    } finally {
      database.close();
    }
  } catch (error) {
    return [error instanceof Error ? error.message : String(error)];
  }
}

/**
 * Puts a new database in the place of a damaged one, with all rows that can still be read. Nobody may
 * have it open. The damaged one is kept beside it, as `<path>.damaged`.
 * @param create makes an empty database of the same tables
 * @returns how many rows were saved
 */
export function salvageDatabase(path: string, create: (path: string) => void): number {
  const fresh = `${path}.salvaged`;
  for (const suffix of suffixes) rmSync(fresh + suffix, { force: true });
  create(fresh);
  const target = new DatabaseSync(fresh);
  let saved = 0;
  try {
    target.exec("PRAGMA foreign_keys = OFF");
    saved = copyReadable(path, target);
  } finally {
    target.close();
  }
  for (const suffix of suffixes) rmSync(`${path}.damaged${suffix}`, { force: true });
  // There is no moment without a database: a daemon would begin with an empty one. The log goes first,
  // since it would be applied to the new one.
  linkSync(path, `${path}.damaged`);
  for (const suffix of suffixes.slice(1)) {
    if (existsSync(path + suffix)) renameSync(path + suffix, `${path}.damaged${suffix}`);
  }
  renameSync(fresh, path);
  return saved;
}

/** Numbers that were given out last may have been lost: so many are left out. */
const sequenceGap = 1_000;

function copyReadable(path: string, target: DatabaseSync): number {
  let saved = 0;
  let source: DatabaseSync;
  try {
    source = new DatabaseSync(path, { readOnly: true });
  } catch {
    return saved;
  }
  const tables = target
    .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    .all()
    .map((row) => String(row["name"]));
  try {
    for (const table of tables) {
      // From both ends, since reading ends where the damage begins.
      for (const order of ["ASC", "DESC"]) saved += copyTable(source, target, table, order);
    }
    if (definitionOf(target, "sqlite_sequence") !== "") {
      target.exec(`UPDATE sqlite_sequence SET seq = seq + ${sequenceGap}`);
    }
  } finally {
    source.close();
  }
  return saved;
}

function copyTable(source: DatabaseSync, target: DatabaseSync, table: string, order: string) {
  let saved = 0;
  try {
    const isOrdered = !/WITHOUT ROWID/.test(definitionOf(target, table));
    const ordered = isOrdered ? `ORDER BY rowid ${order}` : "";
    const statement = source.prepare(`SELECT * FROM ${table} NOT INDEXED ${ordered}`);
    statement.setReadBigInts(true);
    for (const row of statement.iterate()) {
      const columns = Object.keys(row);
      const insert = target.prepare(
        `INSERT OR IGNORE INTO ${table} (${columns.join(", ")})
         VALUES (${columns.map(() => "?").join(", ")})`,
      );
      saved += Number(insert.run(...Object.values(row)).changes);
    }
  } catch {
    // What lies behind the damage cannot be read from this end.
  }
  return saved;
}

function definitionOf(database: DatabaseSync, table: string): string {
  const row = database.prepare("SELECT sql FROM sqlite_master WHERE name = ?").get(table);
  return String(row?.["sql"] ?? "");
}
