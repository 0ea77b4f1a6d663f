import assert from "node:assert/strict";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { afterEach, beforeEach, test } from "node:test";
import { digestKey, digestOf, type Digest } from "../../base/digest.ts";
import { encodeSpanMapHeader } from "../../cache/span-map.ts";
import { parseConfig } from "../../config/load.ts";
import { LayerRecords } from "../../layer/records.ts";
import { SnapshotStore } from "../../snapshotter/store.ts";
import { silentLog } from "../../telemetry/log.ts";
import { examine } from "./doctor.ts";
import type { ReportedFinding } from "./finding.ts";
import { openQueue, type LiveNode } from "./patient.ts";

let root: string;
let state: string;
const layerDigest = digestOf(Buffer.from("blob"));
const diffId = digestOf(Buffer.from("layer"));
const size = 8192;

beforeEach(async () => {
  const directory = await mkdtemp(join(tmpdir(), "clip-doctor-"));
  root = join(directory, "root");
  state = join(directory, "state");
  for (const name of ["s", "w", "l", "cache", "meta", "index"]) {
    await mkdir(join(root, name), { recursive: true, mode: 0o700 });
  }
  await chmod(root, 0o711);
  await mkdir(state, { mode: 0o711 });
});
afterEach(() => rm(join(root, ".."), { recursive: true, force: true }));

/** What the doctor finds but for what is about this machine. */
async function findings(
  check: string,
  {
    repair = false,
    settings = "",
    live,
  }: { repair?: boolean; settings?: string; live?: LiveNode } = {},
): Promise<ReportedFinding[]> {
  const text = `root = "${root}"\nstate = "${state}"\n[containerd]\naddress = "${state}/none"\n${settings}`;
  const config = parseConfig(text, "test");
  const signal = new AbortController().signal;
  const patient = { config, log: silentLog, signal, ...(live === undefined ? {} : { live }) };
  const report = await examine(patient, { repair });
  return report.findings.filter((finding) => finding.check === check);
}

/** Sees to it that something is found, repaired, and not found again. */
async function isRepaired(check: string, what: RegExp, where: string): Promise<void> {
  const [found, ...others] = await findings(check);
  assert.match(found?.what ?? "nothing", what);
  assert.equal(found?.where, where);
  assert.deepEqual([others, found.repairable, found.outcome], [[], true, "left"]);
  const [repaired] = await findings(check, { repair: true });
  assert.deepEqual([repaired?.outcome, repaired?.error], ["repaired", undefined]);
  assert.deepEqual(await findings(check), []);
}

function addSnapshots(names: readonly string[], kind: "active" | "view" = "active"): number[] {
  const store = SnapshotStore.open(join(root, "snapshots.db"));
  const ids = names.map((key) => {
    const id = store.allocateId();
    // Closing brings it to disk.
    void store.create({ id, key, kind, parent: "", labels: new Map() });
    return id;
  });
  store.close();
  return ids;
}

async function makeDirectories(ids: readonly number[]): Promise<void> {
  for (const id of ids) {
    for (const parent of ["s", "w"]) await mkdir(join(root, parent, String(id)));
  }
}

function addLayer(): number {
  const records = LayerRecords.open(join(root, "layers.db"));
  const target = { layerDigest, diffId, compressedSize: 9, mediaType: "m", repositories: [] };
  const layer = { diffId, layerDigest, size, opaqueRoot: false, inodes: 1, ranges: true };
  const number = records.put({ ...target, manifestDigest: diffId }, layer);
  records.close();
  return number;
}

async function writeCacheFile(digest: Digest, bytes: number, mapped = bytes): Promise<string> {
  const path = join(root, "cache", digestKey(digest));
  await writeFile(path, Buffer.alloc(bytes), { mode: 0o600 });
  const header = { spanCount: 1, size: mapped, tableDigest: diffId, complete: true };
  const map = Buffer.concat([encodeSpanMapHeader(header), Buffer.from([1])]);
  await writeFile(`${path}.spans`, map, { mode: 0o600 });
  return path;
}

void test("a node that has done nothing yet is well", async () => {
  for (const check of ["permissions", "databases", "snapshots", "layers", "mounts", "stores"]) {
    assert.deepEqual(await findings(check), [], check);
  }
});

void test("snapshots with their directories are well, whatever their kind", async () => {
  await makeDirectories(addSnapshots(["a/1/x", "a/2/y"]));
  await makeDirectories(addSnapshots(["a/3/z"], "view"));
  assert.deepEqual(await findings("snapshots"), []);
});

void test("a damaged page costs the rows that are on it, and no others", async () => {
  const names = Array.from({ length: 400 }, (_, at) => `default/${at}/${"n".repeat(100)}`);
  const ids = addSnapshots(names);
  await makeDirectories(ids);
  const path = join(root, "snapshots.db");
  const pages = await readFile(path);
  // A leaf of the table (its first byte is 13) in the middle of the file.
  const leaves = Array.from({ length: pages.length / 4096 }, (_, page) => page * 4096).filter(
    (at) => pages[at] === 13 && pages.subarray(at, at + 4096).includes("default/20"),
  );
  assert.ok(leaves[0] !== undefined && leaves[0] > 0);
  await writeFile(path, pages.fill(0xab, leaves[0], leaves[0] + 4096));
  const [found] = await findings("databases");
  assert.match(found?.what ?? "", /the database is damaged/);
  const [repaired] = await findings("databases", { repair: true });
  assert.equal(repaired?.outcome, "repaired");
  assert.deepEqual(await findings("databases"), []);
  const store = SnapshotStore.open(path);
  const saved = store.all().length;
  assert.ok(saved > 300 && saved < 400, `${saved} rows were saved`);
  assert.ok(store.allocateId() > 400, "ids are not used again");
  store.close();
  await stat(`${path}.damaged`);
  // What was written by containers whose rows are lost is moved, not deleted.
  await findings("snapshots", { repair: true });
  assert.equal((await readdir(join(root, "s"))).length, saved);
  assert.equal((await readdir(join(root, "lost"))).length, 400 - saved);
});

void test("a file that is no database is replaced by an empty one, and kept", async () => {
  for (const name of ["snapshots", "layers", "stores", "scrub"]) {
    const path = join(root, `${name}.db`);
    await writeFile(path, "this is no database", { mode: 0o600 });
    await isRepaired("databases", /not a database/, path);
    assert.equal(await readFile(`${path}.damaged`, "utf8"), "this is no database");
  }
});

void test("a damaged database is left to the daemon's stop while it serves", async () => {
  await writeFile(join(root, "layers.db"), "this is no database", { mode: 0o600 });
  const live = { mode: "erofs", mount: async () => {} } as const;
  const [found] = await findings("databases", { repair: true, live });
  assert.deepEqual([found?.repairable, found?.outcome], [false, "left"]);
  assert.match(found?.advice ?? "", /Stop the daemon/);
});

void test("a table that cannot be understood is told of, since the other checks need it", async () => {
  addSnapshots(["a/1/x"]);
  const database = new DatabaseSync(join(root, "snapshots.db"));
  database.exec("UPDATE snapshots SET labels = 'no JSON'");
  database.close();
  assert.deepEqual(await findings("databases"), []);
  const [found] = await findings("tables");
  assert.equal(found?.severity, "error");
  assert.match(found.error ?? "", /JSON/);
});

void test("snapshots whose parent is lost are forgotten, the topmost first", async () => {
  const store = SnapshotStore.open(join(root, "snapshots.db"));
  const ids = [store.allocateId(), store.allocateId(), store.allocateId()] as const;
  const labels = new Map<string, string>();
  await store.create({ id: ids[0], key: "bottom-key", kind: "active", parent: "", labels });
  await store.commit({ key: "bottom-key", name: "bottom", labels, parent: "" });
  await store.create({ id: ids[1], key: "middle-key", kind: "active", parent: "bottom", labels });
  await store.commit({ key: "middle-key", name: "middle", labels, parent: "" });
  await store.create({ id: ids[2], key: "top", kind: "active", parent: "middle", labels });
  store.close();
  await makeDirectories(ids);
  const database = new DatabaseSync(join(root, "snapshots.db"), {
    enableForeignKeyConstraints: false,
  });
  database.exec("DELETE FROM snapshots WHERE name = 'bottom'");
  database.close();
  const found = await findings("snapshots", { repair: true });
  assert.deepEqual(
    found
      .filter(({ severity }) => severity === "error")
      .map(({ where, outcome }) => [where, outcome]),
    [
      ["top", "repaired"],
      ["middle", "repaired"],
    ],
  );
});

void test("a snapshot of a layer that is not known is told with what to do", async () => {
  const store = SnapshotStore.open(join(root, "snapshots.db"));
  await store.createRemote({ parent: "", ref: diffId, labels: new Map(), layer: 7 });
  store.close();
  const [found] = await findings("snapshots");
  assert.deepEqual([found?.severity, found?.where, found?.repairable], ["error", diffId, false]);
});

void test("lost directories of a container are made anew, those of a layer are not", async () => {
  const [id = 0] = addSnapshots(["default/1/container"]);
  await makeDirectories([id]);
  await rm(join(root, "s", String(id)), { recursive: true });
  await isRepaired("snapshots", /files of the active snapshot/, join(root, "s", String(id)));
  await rm(join(root, "w", String(id)), { recursive: true });
  await isRepaired("snapshots", /work directory/, join(root, "w", String(id)));
  const store = SnapshotStore.open(join(root, "snapshots.db"));
  await store.commit({ key: "default/1/container", name: "c", labels: new Map(), parent: "" });
  store.close();
  await rm(join(root, "s", String(id)), { recursive: true });
  const [found] = await findings("snapshots", { repair: true });
  assert.deepEqual([found?.severity, found?.outcome], ["error", "left"]);
});

void test("directories without a snapshot are put aside, but not under a daemon's hands", async () => {
  await makeDirectories([99]);
  const live = { mode: "erofs", mount: async () => {} } as const;
  assert.deepEqual(await findings("snapshots", { live }), []);
  const found = await findings("snapshots", { repair: true });
  assert.deepEqual(
    found.map(({ outcome }) => outcome),
    ["repaired", "repaired"],
  );
  assert.equal((await readdir(join(root, "lost"))).length, 1);
});

void test("files of layers that are not known are deleted", async () => {
  const path = await writeCacheFile(diffId, size);
  await rm(`${path}.spans`);
  await isRepaired("layers", /belongs to no layer/, path);
  const image = join(root, "meta", `${digestKey(diffId)}.v1.erofs`);
  await writeFile(image, "");
  await isRepaired("layers", /belongs to no layer/, image);
});

void test("a layer of a wrong size, or with half of its files, begins anew", async () => {
  addLayer();
  const notes = (await findings("layers")).filter(({ severity }) => severity === "note");
  assert.equal(notes.length, 1, "no snapshot uses it");
  const wrong = async (what: RegExp, severity: string) => {
    const all = await findings("layers", { repair: true });
    const found = all.find(({ where }) => where.includes("/cache/"));
    assert.match(found?.what ?? "nothing", what);
    assert.deepEqual([found?.severity, found?.outcome], [severity, "repaired"]);
    assert.deepEqual(await readdir(join(root, "cache")), []);
  };
  await writeCacheFile(layerDigest, size - 1);
  await wrong(/called complete has 8191 bytes instead of 8192/, "error");
  await writeCacheFile(layerDigest, size, size - 1);
  await wrong(/called complete/, "error");
  const path = await writeCacheFile(layerDigest, size);
  await writeFile(`${path}.spans`, "x");
  await wrong(/the span map is damaged/, "warning");
  await rm(await writeCacheFile(layerDigest, size));
  await wrong(/a span map without its layer/, "warning");
  await rm(`${await writeCacheFile(layerDigest, size)}.spans`);
  await wrong(/a layer without its span map/, "warning");
  await writeCacheFile(layerDigest, size);
  const left = await findings("layers");
  assert.deepEqual(
    left.filter(({ where }) => where.includes("/cache/")),
    [],
  );
});

void test("a damaged index is deleted, a damaged metadata image too when there is no index", async () => {
  const index = join(root, "index", digestKey(layerDigest));
  await writeFile(index, "x".repeat(1000), { mode: 0o600 });
  await isRepaired("layers", /the layer index is damaged/, index);
  addLayer();
  const image = join(root, "meta", `${digestKey(layerDigest)}.v1.erofs`);
  await writeFile(image, "x");
  const found = await findings("layers", { repair: true });
  const damaged = found.find(({ where }) => where === image);
  assert.match(damaged?.what ?? "", /the metadata image is damaged/);
  assert.deepEqual(await readdir(join(root, "meta")), []);
});

void test("what waits to be stored in vain is taken out of the queue", async () => {
  const queue = openQueue(join(root, "stores.db"));
  queue.add({ layerDigest, diffId, size }, false, 0);
  queue.close();
  await isRepaired("stores", /there is none to store it in/, layerDigest);
});

void test("a content cache that cannot be used is named", async () => {
  const settings = `[[content_cache]]\nkind = "directory"\nname = "shelf"\npath = "${state}/none"`;
  const [found] = await findings("content caches", { settings });
  assert.deepEqual([found?.severity, found?.where], ["error", "shelf"]);
  await mkdir(join(state, "none"));
  assert.deepEqual(await findings("content caches", { settings }), []);
});

void test("what others may read that they should not is closed to them", async () => {
  await chmod(join(root, "cache"), 0o755);
  await isRepaired("permissions", /its mode is 755, more than 700/, join(root, "cache"));
  const path = join(root, "index", "file");
  await writeFile(path, "", { mode: 0o644 });
  await isRepaired("permissions", /its mode is 644/, path);
});

void test("credentials that cannot be read, or that others can, are told, and never shown", async () => {
  const file = join(state, "docker.json");
  const settings = `[registry]\ndocker_config = "${file}"`;
  const [missing] = await findings("credentials", { settings });
  assert.match(missing?.what ?? "", /not there/);
  await writeFile(file, '{"auths": {"a": {"auth": "secret', { mode: 0o600 });
  const [broken] = await findings("credentials", { settings });
  assert.equal(broken?.severity, "error");
  assert.doesNotMatch(JSON.stringify(broken), /secret/);
  await writeFile(file, "{}");
  assert.deepEqual(await findings("credentials", { settings }), []);
  await chmod(file, 0o644);
  const [open] = await findings("credentials", { settings });
  assert.match(open?.what ?? "", /other users can read/);
});

void test("too little room is told before anything fails", async () => {
  const settings = "[cache]\nfree_bytes_min = 1000000000000000";
  const [found] = await findings("disk", { settings });
  assert.match(found?.what ?? "", /bytes are free/);
});

void test("a containerd that does not answer is a fault while the daemon serves", async () => {
  const [note] = await findings("containerd");
  assert.equal(note?.severity, "note");
  const live = { mode: "erofs", mount: async () => {} } as const;
  const [found] = await findings("containerd", { live });
  assert.equal(found?.severity, "error");
});
