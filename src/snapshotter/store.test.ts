import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import { isClipError, type ErrorCode } from "../base/errors.ts";
import { wallClockNanoseconds } from "../os/libc.ts";
import { refLabel, type Labels } from "./snapshot.ts";
import { SnapshotStore } from "./store.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-store-"));
after(() => rmSync(directory, { recursive: true, force: true }));

let databases = 0;
const none: Labels = new Map();

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

function fails(code: ErrorCode, work: () => unknown) {
  assert.throws(work, (error) => isClipError(error, code));
}

test("a commit gives a snapshot a name, new labels and new times, and keeps its id and parent", (context) => {
  const store = openStore(context);
  create(store, "a");
  commit(store, "a", "base");
  const labels = new Map([["only", "while active"]]);
  const active = store.create({
    id: store.allocateId(),
    key: "b",
    kind: "active",
    parent: "base",
    labels,
  });
  const before = wallClockNanoseconds();
  const committed = commit(
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

test("what breaks the rules is refused with the code that containerd expects", (context) => {
  const store = openStore(context);
  create(store, "active");
  create(store, "view", "", "view");
  create(store, "a");
  commit(store, "a", "base");
  fails("SNAPSHOT_EXISTS", () => create(store, "active"));
  fails("SNAPSHOT_EXISTS", () => create(store, "base"));
  fails("SNAPSHOT_NOT_FOUND", () => create(store, "b", "nobody"));
  fails("ARGUMENT_INVALID", () => create(store, "b", "active"));
  fails("ARGUMENT_INVALID", () => create(store, ""));
  fails("SNAPSHOT_EXISTS", () => commit(store, "active", "base"));
  fails("SNAPSHOT_NOT_FOUND", () => commit(store, "nobody", "x"));
  fails("SNAPSHOT_PRECONDITION", () => commit(store, "view", "x"));
  fails("SNAPSHOT_PRECONDITION", () => commit(store, "base", "x"));
  fails("SNAPSHOT_NOT_FOUND", () => store.get("nobody"));
  fails("SNAPSHOT_NOT_FOUND", () => store.setLabels("nobody", none));
  fails("SNAPSHOT_NOT_FOUND", () => store.remove("nobody"));
  create(store, "child", "base");
  assert.throws(() => store.remove("base"), /cannot remove/);
  fails("SNAPSHOT_PRECONDITION", () => store.remove("base"));
  store.remove("child");
  store.remove("base");
});

test("a commit may give a parent only to a snapshot that has none", (context) => {
  const store = openStore(context);
  create(store, "a");
  commit(store, "a", "base");
  create(store, "b");
  create(store, "c", "base");
  create(store, "still active");
  fails("SNAPSHOT_PRECONDITION", () => commit(store, "b", "x", "still active"));
  fails("SNAPSHOT_NOT_FOUND", () => commit(store, "b", "x", "nobody"));
  fails("ARGUMENT_INVALID", () => commit(store, "c", "y", "x"));
  assert.equal(commit(store, "c", "y", "base").parent, "base");
  assert.equal(commit(store, "b", "x", "base").parent, "base");
  fails("SNAPSHOT_PRECONDITION", () => store.remove("base"));
});

test("everything survives a restart, and ids are never used again", (context) => {
  const path = join(directory, "restart.db");
  const first = SnapshotStore.open(path);
  create(first, "a");
  const base = commit(
    first,
    "a",
    'base with "quotes" and ümlauts',
    "",
    new Map([["__proto__", "1"]]),
  );
  first.setUsage(base, { bytes: 4096, inodes: 2 });
  const remote = first.createRemote({ parent: base.name, ref: "sha256:r", labels: none, layer: 7 });
  const gone = create(first, "gone");
  first.remove("gone");
  const all = first.all();
  first.close();
  const second = openStore(context, path);
  assert.deepEqual(second.all(), all);
  assert.deepEqual(second.get(base.name).usage, { bytes: 4096, inodes: 2 });
  assert.equal(second.get(remote.name).layer, 7);
  assert.deepEqual(second.layers(), [7]);
  assert.ok(second.allocateId() > gone.id);
});

test("there is one remote snapshot for each parent and ref, and its layer is counted", (context) => {
  const store = openStore(context);
  const request = { parent: "", ref: "sha256:r", labels: new Map([["a", "b"]]), layer: 3 };
  const remote = store.createRemote(request);
  assert.equal(store.createRemote({ ...request, layer: 4 }), remote);
  assert.equal(store.findRemote("", "sha256:r"), remote);
  assert.equal(store.findRemote("", "sha256:other"), undefined);
  assert.deepEqual(Object.fromEntries(remote.labels), { a: "b", [refLabel]: "sha256:r" });
  const upper = store.createRemote({ ...request, parent: remote.name });
  assert.equal(store.findRemote(remote.name, "sha256:r"), upper);
  assert.equal(store.layerReferences(3), 2);
  store.remove(upper.name);
  store.remove(remote.name);
  assert.equal(store.layerReferences(3), 0);
  assert.equal(store.findRemote("", "sha256:r"), undefined);
  fails("SNAPSHOT_NOT_FOUND", () => store.createRemote({ ...request, parent: "nobody" }));
});

test("an ordinary snapshot with a ref is found by it, but is not a remote one", (context) => {
  const store = openStore(context);
  const labels = new Map([[refLabel, "sha256:r"]]);
  const id = store.allocateId();
  const active = store.create({ id, key: "a", kind: "active", parent: "", labels });
  assert.deepEqual(store.findByRef("", "sha256:r"), [active]);
  assert.equal(store.findRemote("", "sha256:r"), undefined);
  store.setLabels("a", none);
  assert.deepEqual(store.findByRef("", "sha256:r"), []);
});

test("an update changes labels and its time alone, a measurement not even that", (context) => {
  const store = openStore(context);
  create(store, "a");
  const before = commit(store, "a", "base");
  const updated = store.setLabels(
    "base",
    new Map([
      ["l", "1"],
      ["gone", ""],
    ]),
  );
  assert.deepEqual([...updated.labels], [["l", "1"]]);
  assert.equal(updated.createdAt, before.createdAt);
  assert.ok(updated.updatedAt >= before.updatedAt);
  store.setUsage(before, { bytes: 1, inodes: 1 });
  assert.deepEqual(store.get("base"), { ...updated, usage: { bytes: 1, inodes: 1 } });
});

test("a measurement of a snapshot that is gone is dropped", (context) => {
  const store = openStore(context);
  create(store, "a");
  const gone = commit(store, "a", "base");
  store.remove("base");
  create(store, "b");
  commit(store, "b", "base");
  store.setUsage(gone, { bytes: 1, inodes: 1 });
  assert.equal(store.get("base").usage, undefined);
});
