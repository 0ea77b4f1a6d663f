import assert from "node:assert/strict";
import { test } from "node:test";
import {
  chainIds,
  digestBytes,
  digestFromBytes,
  digestKey,
  digestOf,
  isDigest,
  parseDigest,
} from "./digest.ts";
import { isClipError } from "./errors.ts";

const empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

test("the digest of nothing is the well-known one, and survives its other forms", () => {
  const digest = digestOf(Buffer.alloc(0));
  assert.equal(digest, empty);
  assert.equal(digestFromBytes(digestBytes(digest)), digest);
  assert.equal(digestKey(digest), empty.replace(":", "_"));
});

test("what is not sha256 and 64 lower-case hex digits is no digest", () => {
  for (const text of [
    "",
    "sha256:",
    empty.toUpperCase(),
    `${empty}0`,
    `${empty}\n`,
    "sha512:00",
    "../../etc",
  ]) {
    assert.equal(isDigest(text), false, text);
    assert.throws(
      () => parseDigest(text),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
    );
  }
});

test("a chainID hashes the one below with the diffID, as the OCI image spec defines it", () => {
  const a = digestOf(Buffer.from("a"));
  const b = digestOf(Buffer.from("b"));
  assert.deepEqual(chainIds([]), []);
  assert.deepEqual(chainIds([a, b]), [a, digestOf(Buffer.from(`${a} ${b}`))]);
});
