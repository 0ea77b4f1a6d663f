import assert from "node:assert/strict";
import { test } from "node:test";
import { digestOf, type Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { PublishedIndex } from "../index/published.ts";
import { bufferSource } from "../index/sources.ts";
import type { Repository } from "../registry/reference.ts";
import { silentLog } from "../telemetry/log.ts";
import { IndexLookup, type PublishedIndexes } from "./index-lookup.ts";
import type { LayerTarget } from "./target.ts";

const never = new AbortController().signal;
const digest = (name: string): Digest => digestOf(Buffer.from(name));

function target(name: string): LayerTarget {
  return {
    layerDigest: digest(name),
    diffId: digest(`diff ${name}`),
    compressedSize: 1,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    manifestDigest: digest("manifest"),
    repositories: [],
  };
}

function published(name: string): PublishedIndex {
  const source = bufferSource(Buffer.from(name));
  return { digest: digest(name), size: 1, headDigest: digest(name), prefixBytes: 1, source };
}

/** A lookup on a clock of its own, in a registry that says what `answer` gives. */
function setUp(answer: (repository: Repository) => PublishedIndexes) {
  const state = { asked: 0, now: 0, answer };
  const lookup = new IndexLookup({
    find: async (repository) => {
      state.asked++;
      await new Promise(setImmediate);
      return state.answer(repository);
    },
    log: silentLog,
    now: () => state.now,
  });
  const find = async (name: string, repositories = ["one"]) => {
    const places = repositories.map((repository) => ({ host: "host", name: repository }));
    const found = await lookup.find(target(name), places, never);
    return found.map((index) => index.digest);
  };
  return { state, find, close: () => lookup.close() };
}

const none: PublishedIndexes = new Map();
const forA: PublishedIndexes = new Map([[digest("a"), [published("index of a")]]]);
const down = () => {
  throw new ClipError("REGISTRY_UNAVAILABLE", "down");
};

void test("the layers of an image share one answer, for a while", async () => {
  const { state, find, close } = setUp(() => forA);
  assert.deepEqual(await Promise.all([find("a"), find("a"), find("b")]), [
    [digest("index of a")],
    [digest("index of a")],
    [],
  ]);
  state.now = 29_000;
  assert.equal((await find("a")).length, 1);
  assert.equal(state.asked, 1);
  state.now = 31_000;
  await find("a");
  assert.equal(state.asked, 2);
  await close();
});

void test("that there is none is believed for three seconds, also where others have one", async () => {
  const { state, find, close } = setUp(() => none);
  assert.deepEqual(await find("b"), []);
  state.answer = () => forA;
  state.now = 2_900;
  assert.deepEqual(await find("a"), []);
  assert.equal(state.asked, 1);
  state.now = 3_100;
  assert.equal((await find("a")).length, 1);
  assert.equal(state.asked, 2);
  assert.deepEqual(await find("b"), []);
  assert.equal(state.asked, 2);
  state.answer = () => new Map([...forA, [digest("b"), [published("index of b")]]]);
  state.now = 6_200;
  assert.equal((await find("a")).length, 1);
  assert.equal(state.asked, 2);
  assert.deepEqual(await find("b"), [digest("index of b")]);
  assert.equal(state.asked, 3);
  await close();
});

void test("a registry that could not be asked is asked again at once, and others meanwhile", async () => {
  const { state, find, close } = setUp(({ name }) => (name === "one" ? down() : forA));
  assert.equal((await find("a", ["one", "two"])).length, 1);
  assert.equal(state.asked, 2);
  state.answer = () => forA;
  assert.equal((await find("a")).length, 1);
  assert.equal(state.asked, 3);
  await close();
});
