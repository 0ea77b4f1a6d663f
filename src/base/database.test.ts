import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, test } from "node:test";
import { openDatabase, transaction } from "./database.ts";
import { isClipError } from "./errors.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-database-"));
after(() => rmSync(directory, { recursive: true, force: true }));

test("a database is brought from any version to the newest, once", () => {
  const path = join(directory, "a.db");
  const first = "CREATE TABLE t (x INTEGER)";
  openDatabase(path, [first]).close();
  const database = openDatabase(path, [first, "INSERT INTO t VALUES (7)"]);
  database.close();
  const again = openDatabase(path, [first, "INSERT INTO t VALUES (7)"]);
  assert.equal(again.prepare("SELECT count(*) AS n FROM t").get()?.["n"], 1);
  assert.equal(again.prepare("PRAGMA synchronous").get()?.["synchronous"], 2);
  again.close();
});

test("a transaction that throws leaves nothing behind", () => {
  const database = openDatabase(join(directory, "b.db"), ["CREATE TABLE t (x INTEGER)"]);
  assert.throws(() =>
    transaction(database, () => {
      database.exec("INSERT INTO t VALUES (1)");
      throw new Error("no");
    }),
  );
  assert.equal(database.prepare("SELECT count(*) AS n FROM t").get()?.["n"], 0);
  database.close();
});

test("nobody but the owner may read a database, its log or its shared memory", () => {
  const path = join(directory, "c.db");
  openDatabase(path, ["CREATE TABLE t (x INTEGER)"]).close();
  chmodSync(path, 0o644);
  const database = openDatabase(path, ["CREATE TABLE t (x INTEGER)"]);
  database.exec("INSERT INTO t VALUES (1)");
  const files = readdirSync(directory).filter((name) => name.startsWith("c.db"));
  assert.equal(files.length, 3);
  for (const name of files) assert.equal(statSync(join(directory, name)).mode & 0o777, 0o600);
  database.close();
});

test("a database that cannot grow says that the disk is full, and goes on when there is room", () => {
  const database = openDatabase(join(directory, "d.db"), ["CREATE TABLE t (x BLOB)"]);
  const insert = (bytes: number) =>
    transaction(database, () =>
      database.prepare("INSERT INTO t VALUES (zeroblob(?)) RETURNING 1").get(bytes),
    );
  database.exec("PRAGMA max_page_count = 8");
  assert.throws(
    () => insert(1_000_000),
    (error) => isClipError(error, "DISK_FULL") && error.message.includes("d.db"),
  );
  assert.throws(
    () => database.prepare("INSERT INTO t VALUES (zeroblob(1000000))").run(),
    (error) => isClipError(error, "DISK_FULL"),
  );
  insert(100);
  assert.equal(database.prepare("SELECT count(*) AS n FROM t").all()[0]?.["n"], 1);
  database.close();
});

test("a database that must not be written says which one", () => {
  const database = openDatabase(join(directory, "e.db"), ["CREATE TABLE t (x BLOB)"]);
  database.exec("PRAGMA query_only = ON");
  assert.throws(
    () => database.exec("INSERT INTO t VALUES (1)"),
    (error) => isClipError(error, "SYSTEM_CALL") && error.message.includes("e.db"),
  );
  database.close();
});

test("a database is opened although a crash has left what was to reserve room", () => {
  const path = join(directory, "f.db");
  const migrations = ["CREATE TABLE t (x INTEGER)"];
  openDatabase(path, migrations).close();
  const crashed = new DatabaseSync(path);
  crashed.exec("CREATE TABLE room (bytes BLOB)");
  crashed.close();
  const database = openDatabase(path, migrations);
  const tables = database.prepare("SELECT name FROM sqlite_master WHERE type = 'table'").all();
  assert.deepEqual(
    tables.map(({ name }) => name),
    ["t"],
  );
  database.close();
});

test("a damaged database says which one, and how it is repaired", () => {
  const path = join(directory, "g.db");
  writeFileSync(path, "this is no database");
  assert.throws(
    () => openDatabase(path, []),
    (error) =>
      isClipError(error, "SYSTEM_CALL") &&
      error.message.includes("g.db is damaged") &&
      error.hint?.includes("clip doctor --repair") === true,
  );
});
