import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { openDatabase } from "./database.ts";
import { GroupCommit } from "./group-commit.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-group-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let databases = 0;

function open(context: TestContext) {
  const path = join(directory, `${databases++}.db`);
  const database = openDatabase(path, ["CREATE TABLE number (value INTEGER UNIQUE) STRICT"]);
  context.after(() => database.close());
  const lost: number[] = [];
  const read = () =>
    database
      .prepare("SELECT value FROM number ORDER BY rowid")
      .all()
      .map(({ value }) => Number(value));
  const group = new GroupCommit(database, () => lost.push(read().length));
  const put = (value: number) =>
    group.add(() => database.prepare("INSERT INTO number VALUES (?)").run(value));
  return { database, group, put, read, lost };
}

test("changes of one moment are made in one transaction, in order", async (context) => {
  const { database, put, read } = open(context);
  let transactions = 0;
  const exec = database.exec.bind(database);
  context.mock.method(database, "exec", (sql: string) => {
    if (sql.startsWith("BEGIN")) transactions++;
    exec(sql);
  });
  await Promise.all([3, 1, 2].map(put));
  assert.deepEqual(read(), [3, 1, 2]);
  assert.equal(transactions, 1);
});

test("a change that fails keeps no other from being made", async (context) => {
  const { put, read, lost } = open(context);
  const outcomes = await Promise.allSettled([1, 2, 1, 3].map(put));
  assert.deepEqual(
    outcomes.map(({ status }) => status),
    ["fulfilled", "fulfilled", "rejected", "fulfilled"],
  );
  assert.deepEqual(read(), [1, 2, 3]);
  // Told once, when all the others had been made.
  assert.deepEqual(lost, [3]);
});

test("what is waited for is on disk, and can be hurried", async (context) => {
  const { group, put, read } = open(context);
  await group.settled();
  const first = put(1);
  assert.deepEqual(read(), []);
  await group.settled();
  assert.deepEqual(read(), [1]);
  const second = put(2);
  group.flush();
  assert.deepEqual(read(), [1, 2]);
  await Promise.all([first, second]);
});

test("who has lost a change learns of it even if nobody can be told what is left", async (context) => {
  const { database } = open(context);
  const group = new GroupCommit(database, () => {
    throw new Error("unreadable");
  });
  const lost = group.add(() => {
    throw new Error("no");
  });
  assert.throws(() => group.flush(), /unreadable/);
  await assert.rejects(lost, /no/);
});
