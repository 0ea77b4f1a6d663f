import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, test, type TestContext } from "node:test";
import { isClipError, type ErrorCode } from "../base/errors.ts";
import { wallClockNanoseconds } from "../os/libc.ts";
import { refLabel, type Labels } from "./snapshot.ts";
import { SnapshotStore } from "./store.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-store-"));
after(() => rmSync(directory, { recursive: true, force: true }));

let databases = 0;
const none: Labels = new Map();

/** A store whose disk takes no change until it is released. */
function openHeld(context: TestContext) {
  const path = join(directory, `${databases++}.db`);
  const store = openStore(context, path);
  const other = new DatabaseSync(path);
  context.after(() => other.close());
  other.exec("BEGIN IMMEDIATE");
  const onDisk = () => other.prepare("SELECT name FROM snapshots").all();
  return { store, release: () => other.exec("ROLLBACK"), other, onDisk };
}

function openStore(context: TestContext, path = join(directory, `${databases++}.db`)) {
  const store = SnapshotStore.open(path);
  context.after(() => store.close());
  return store;
}

function create(
  store: SnapshotStore,
  key: string,
  parent = "",
  kind: "active" | "view" = "active",
) {
  return store.create({ id: store.allocateId(), key, kind, parent, labels: none });
}

function commit(store: SnapshotStore, key: string, name: string, parent = "", labels = none) {
  return store.commit({ key, name, labels, parent });
}

async function fails(code: ErrorCode, work: () => unknown) {
  await assert.rejects(
    async () => work(),
    (error) => isClipError(error, code),
  );
}

test("a commit gives a snapshot a name, new labels and new times, and keeps its id and parent", async (context) => {
  const store = openStore(context);
  await create(store, "a");
  await commit(store, "a", "base");
  const labels = new Map([["only", "while active"]]);
  const active = await store.create({
    id: store.allocateId(),
    key: "b",
    kind: "active",
    parent: "base",
    labels,
  });
  const before = wallClockNanoseconds();
  const committed = await commit(
    store,
    "b",
    "top",
    "",
    new Map([
      ["x", "y"],
      ["empty", ""],
    ]),
  );
  assert.equal(committed.id, active.id);
  assert.equal(committed.parent, "base");
  assert.equal(committed.kind, "committed");
  assert.deepEqual([...committed.labels], [["x", "y"]]);
  assert.equal(committed.createdAt, committed.updatedAt);
  assert.ok(committed.createdAt >= before);
  assert.equal(store.find("b"), undefined);
  assert.deepEqual(
    store.ancestors(committed).map(({ name }) => name),
    ["base"],
  );
});

test("what breaks the rules is refused with the code that containerd expects", async (context) => {
  const store = openStore(context);
  await create(store, "active");
  await create(store, "view", "", "view");
  await create(store, "a");
  await commit(store, "a", "base");
  await fails("SNAPSHOT_EXISTS", () => create(store, "active"));
  await fails("SNAPSHOT_EXISTS", () => create(store, "base"));
  await fails("SNAPSHOT_NOT_FOUND", () => create(store, "b", "nobody"));
  await fails("ARGUMENT_INVALID", () => create(store, "b", "active"));
  await fails("ARGUMENT_INVALID", () => create(store, ""));
  await fails("SNAPSHOT_EXISTS", () => commit(store, "active", "base"));
  await fails("SNAPSHOT_NOT_FOUND", () => commit(store, "nobody", "x"));
  await fails("SNAPSHOT_PRECONDITION", () => commit(store, "view", "x"));
  await fails("SNAPSHOT_PRECONDITION", () => commit(store, "base", "x"));
  await fails("SNAPSHOT_NOT_FOUND", () => store.get("nobody"));
  await fails("SNAPSHOT_NOT_FOUND", () => store.setLabels("nobody", none));
  await fails("SNAPSHOT_NOT_FOUND", () => store.remove("nobody"));
  await create(store, "child", "base");
  await assert.rejects(store.remove("base"), /cannot remove/);
  await fails("SNAPSHOT_PRECONDITION", () => store.remove("base"));
  await store.remove("child");
  await store.remove("base");
});

test("a commit may give a parent only to a snapshot that has none", async (context) => {
  const store = openStore(context);
  await create(store, "a");
  await commit(store, "a", "base");
  await create(store, "b");
  await create(store, "c", "base");
  await create(store, "still active");
  await fails("SNAPSHOT_PRECONDITION", () => commit(store, "b", "x", "still active"));
  await fails("SNAPSHOT_NOT_FOUND", () => commit(store, "b", "x", "nobody"));
  await fails("ARGUMENT_INVALID", () => commit(store, "c", "y", "x"));
  assert.equal((await commit(store, "c", "y", "base")).parent, "base");
  assert.equal((await commit(store, "b", "x", "base")).parent, "base");
  await fails("SNAPSHOT_PRECONDITION", () => store.remove("base"));
});

test("everything survives a restart, and ids are never used again", async (context) => {
  const path = join(directory, "restart.db");
  const first = SnapshotStore.open(path);
  await create(first, "a");
  const base = await commit(
    first,
    "a",
    'base with "quotes" and ümlauts',
    "",
    new Map([["__proto__", "1"]]),
  );
  await first.setUsage(base, { bytes: 4096, inodes: 2 });
  const remote = await first.createRemote({
    parent: base.name,
    ref: "sha256:r",
    labels: none,
    layer: 7,
  });
  const gone = await create(first, "gone");
  await first.remove("gone");
  const all = first.all();
  first.close();
  const second = openStore(context, path);
  assert.deepEqual(second.all(), all);
  assert.deepEqual(second.get(base.name).usage, { bytes: 4096, inodes: 2 });
  assert.equal(second.get(remote.name).layer, 7);
  assert.deepEqual(second.layers(), [7]);
  assert.ok(second.allocateId() > gone.id);
});

test("there is one remote snapshot for each parent and ref, and its layer is counted", async (context) => {
  const store = openStore(context);
  const request = { parent: "", ref: "sha256:r", labels: new Map([["a", "b"]]), layer: 3 };
  const remote = await store.createRemote(request);
  assert.equal(await store.createRemote({ ...request, layer: 4 }), remote);
  assert.equal(store.findRemote("", "sha256:r"), remote);
  assert.equal(store.findRemote("", "sha256:other"), undefined);
  assert.deepEqual(Object.fromEntries(remote.labels), { a: "b", [refLabel]: "sha256:r" });
  const upper = await store.createRemote({ ...request, parent: remote.name });
  assert.equal(store.findRemote(remote.name, "sha256:r"), upper);
  assert.equal(store.layerReferences(3), 2);
  await store.remove(upper.name);
  await store.remove(remote.name);
  assert.equal(store.layerReferences(3), 0);
  assert.equal(store.findRemote("", "sha256:r"), undefined);
  await fails("SNAPSHOT_NOT_FOUND", () => store.createRemote({ ...request, parent: "nobody" }));
});

test("an ordinary snapshot with a ref is found by it, but is not a remote one", async (context) => {
  const store = openStore(context);
  const labels = new Map([[refLabel, "sha256:r"]]);
  const id = store.allocateId();
  const active = await store.create({ id, key: "a", kind: "active", parent: "", labels });
  assert.deepEqual(store.findByRef("", "sha256:r"), [active]);
  assert.equal(store.findRemote("", "sha256:r"), undefined);
  await store.setLabels("a", none);
  assert.deepEqual(store.findByRef("", "sha256:r"), []);
});

test("an update changes labels and its time alone, a measurement not even that", async (context) => {
  const store = openStore(context);
  await create(store, "a");
  const before = await commit(store, "a", "base");
  const updated = await store.setLabels(
    "base",
    new Map([
      ["l", "1"],
      ["gone", ""],
    ]),
  );
  assert.deepEqual([...updated.labels], [["l", "1"]]);
  assert.equal(updated.createdAt, before.createdAt);
  assert.ok(updated.updatedAt >= before.updatedAt);
  await store.setUsage(before, { bytes: 1, inodes: 1 });
  assert.deepEqual(store.get("base"), { ...updated, usage: { bytes: 1, inodes: 1 } });
});

test("a measurement of a snapshot that is gone is dropped", async (context) => {
  const store = openStore(context);
  await create(store, "a");
  const gone = await commit(store, "a", "base");
  await store.remove("base");
  await create(store, "b");
  await commit(store, "b", "base");
  await store.setUsage(gone, { bytes: 1, inodes: 1 });
  assert.equal(store.get("base").usage, undefined);
});

test("a change that could not be brought to disk is seen no more", async (context) => {
  const { store, release, onDisk } = openHeld(context);
  const lost = create(store, "a");
  assert.equal(store.get("a").kind, "active");
  await assert.rejects(lost, /locked/);
  assert.equal(store.find("a"), undefined);
  release();
  await create(store, "a");
  assert.deepEqual(
    onDisk().map(({ name }) => name),
    ["a"],
  );
});

test("a change of what could not be brought to disk fails with it", async (context) => {
  const { store, release, other } = openHeld(context);
  release();
  other.exec(
    `INSERT INTO snapshots (id, name, kind, labels, created, updated)
     VALUES (99, 'a', 'active', '[]', 0, 0)`,
  );
  const lost = create(store, "a");
  const labelled = store.setLabels("a", new Map([["l", "1"]]));
  await assert.rejects(lost, /UNIQUE/);
  await fails("SNAPSHOT_NOT_FOUND", () => labelled);
  assert.equal(store.get("a").id, 99);
});

test("whoever finds a remote snapshot that another has made is told of one that is on disk", async (context) => {
  const { store, release, onDisk } = openHeld(context);
  const request = { parent: "", ref: "sha256:r", labels: none, layer: 3 };
  const first = store.createRemote(request);
  const second = store.createRemote(request);
  first.catch(release);
  await assert.rejects(first, /locked/);
  const { name } = await second;
  assert.deepEqual(
    onDisk().map((row) => row["name"]),
    [name],
  );
});
