import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { LayerRecords } from "./records.ts";
import type { LayerTarget } from "./target.ts";

const base = await mkdtemp(join(tmpdir(), "clip-records-"));
after(() => rm(base, { recursive: true, force: true }));

const digest = (name: string) => digestOf(Buffer.from(name));

function target(name: string, blob = name, repositories = ["a/x"]): LayerTarget {
  return {
    layerDigest: digest(`blob ${blob}`),
    diffId: digest(`diff ${name}`),
    compressedSize: 100,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    manifestDigest: digest("manifest"),
    repositories: repositories.map((one) => {
      const [host = "", repository = ""] = one.split("/");
      return { host, name: repository };
    }),
  };
}

function put(records: LayerRecords, of: LayerTarget, implied: readonly Buffer[] = []): number {
  const { diffId, layerDigest } = of;
  const layer = { diffId, layerDigest, size: 1000, opaqueRoot: true, inodes: 7, ranges: true };
  return records.put(of, layer, implied);
}

void test("directories without an entry of their own are kept, replaced, and go with the layer", () => {
  const records = LayerRecords.open(join(base, "implied.db"));
  const paths = [Buffer.from("tmp"), Buffer.from([0xff, 0x2f, 0x0a])];
  const number = put(records, target("1"), paths);
  assert.deepEqual(records.impliedDirectories(number), paths);
  assert.equal(put(records, target("1"), paths.slice(1)), number);
  assert.deepEqual(records.impliedDirectories(number), paths.slice(1));
  put(records, target("1"));
  assert.deepEqual(records.impliedDirectories(number), []);
  put(records, target("1"), paths);
  records.remove(number);
  assert.deepEqual(records.impliedDirectories(number), []);
  records.close();
});

void test("layers keep their numbers over reopening and are never renumbered", async () => {
  const path = join(base, "numbers.db");
  const records = LayerRecords.open(path);
  const [one, two] = [put(records, target("1")), put(records, target("2"))];
  assert.equal(put(records, target("1")), one);
  records.remove(two);
  records.close();
  const again = LayerRecords.open(path);
  assert.notEqual(put(again, target("2")), two);
  assert.deepEqual(again.byNumber(one), {
    number: one,
    diffId: digest("diff 1"),
    layerDigest: digest("blob 1"),
    size: 1000,
    opaqueRoot: true,
    inodes: 7,
    ranges: true,
  });
  assert.equal(again.byDiffId(digest("diff 1"))?.number, one);
  assert.equal(again.all().length, 2);
  again.close();
});

void test("blobs and repositories of a layer add up, and the one that served last comes first", () => {
  const records = LayerRecords.open(join(base, "blobs.db"));
  put(records, target("1"));
  records.learn(target("1", "1", ["b/y", "a/x"]));
  records.learn(target("1", "other", ["c/z"]));
  const places = () =>
    records.blobs(digest("diff 1")).map(({ layerDigest, repositories }) => ({
      layerDigest,
      at: repositories.map(({ host, name }) => `${host}/${name}`),
    }));
  assert.deepEqual(places(), [
    { layerDigest: digest("blob 1"), at: ["a/x", "b/y"] },
    { layerDigest: digest("blob other"), at: ["c/z"] },
  ]);
  records.prefer(digest("blob 1"), { host: "b", name: "y" });
  assert.deepEqual(places()[0]?.at, ["b/y", "a/x"]);
  records.remove(1);
  assert.deepEqual(places(), []);
  records.close();
});

void test("how a layer was mounted is remembered", () => {
  const records = LayerRecords.open(join(base, "mounts.db"));
  const number = put(records, target("1"));
  assert.equal(records.mountOf(number), undefined);
  records.setMount(number, { device: "0:42", backing: "local" });
  assert.deepEqual(records.mountOf(number), { device: "0:42", backing: "local" });
  records.close();
});

void test("a condemned layer leads from its former number to its next one until that is let go", () => {
  const path = join(base, "condemned.db");
  let records = LayerRecords.open(path);
  const head = digest("head of the index");
  const [other, old] = [put(records, target("other")), put(records, target("1"))];
  const { diffId } = target("1");
  records.condemn(old, head);
  assert.equal(records.byNumber(old), undefined);
  assert.equal(records.diffIdOf(old), diffId);
  assert.equal(records.blobs(diffId).length, 1, "it can be made ready anew");
  records.close();
  records = LayerRecords.open(path);
  assert.ok(records.isDistrusted(head));
  const next = put(records, target("1"));
  assert.notEqual(next, old);
  assert.equal(records.byNumber(old)?.number, next);
  records.condemn(next, head);
  assert.deepEqual(records.formerNumbers(), [old, next]);
  records.forgetFormerNumber(old);
  assert.equal(records.blobs(diffId).length, 1);
  records.forgetFormerNumber(next);
  assert.equal(records.blobs(diffId).length, 0);
  assert.equal(records.diffIdOf(old), undefined);
  records.trust(head);
  assert.ok(!records.isDistrusted(head));
  assert.deepEqual(records.formerNumbers(target("other").diffId), []);
  assert.equal(records.byNumber(other)?.number, other);
  records.close();
});

void test("nothing is learned of a layer that was let go, and whether it comes in parts is kept", () => {
  const records = LayerRecords.open(join(base, "learn.db"));
  records.learn(target("1"));
  assert.deepEqual(records.blobs(target("1").diffId), []);
  const number = put(records, target("1"));
  records.setRanges(number, false);
  assert.equal(records.byNumber(number)?.ranges, false);
  records.close();
});
