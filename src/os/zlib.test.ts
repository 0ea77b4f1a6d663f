import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateRawSync, gzipSync } from "node:zlib";
import { isClipError } from "../base/errors.ts";
import { allocateFixed, InflateStream, Z_BLOCK, Z_NO_FLUSH } from "./zlib.ts";
import type { FixedMemory } from "./zlib.ts";

const text = Buffer.from("the quick brown fox jumps over the lazy dog. ".repeat(40));

function fixed(bytes: Buffer): FixedMemory {
  const memory = allocateFixed(bytes.length);
  bytes.copy(memory.bytes);
  return memory;
}

test("a gzip stream is decoded, and what follows it is left", () => {
  const compressed = Buffer.concat([gzipSync(text), Buffer.from("rest")]);
  const input = fixed(compressed);
  const output = allocateFixed(text.length + 10);
  const stream = new InflateStream("gzip");
  stream.setInput(input, 0, compressed.length);
  stream.setOutput(output, 10, output.bytes.length);
  assert.equal(stream.run(Z_NO_FLUSH), "end");
  assert.equal(stream.inputLeft, 4);
  assert.equal(stream.outputLeft, 0);
  assert.ok(output.bytes.subarray(10).equals(text));
  stream.close();
});

test("Z_BLOCK stops after the header and at the end of the last block", () => {
  const compressed = gzipSync(text);
  const input = fixed(compressed);
  const output = allocateFixed(text.length + 1);
  const stream = new InflateStream("gzip");
  stream.setInput(input, 0, compressed.length);
  stream.setOutput(output, 0, output.bytes.length);
  assert.equal(stream.run(Z_BLOCK), "progress");
  assert.ok(stream.atBlockStart);
  assert.equal(stream.unusedBits, 0);
  assert.equal(compressed.length - stream.inputLeft, 10);
  assert.equal(stream.run(Z_BLOCK), "progress");
  assert.ok(stream.atBlockBoundary && !stream.atBlockStart);
  assert.equal(stream.run(Z_BLOCK), "end");
  stream.close();
});

test("a raw stream starts with given bits and a given window", () => {
  const dictionary = text.subarray(0, 500);
  const compressed = deflateRawSync(text, { dictionary });
  const input = fixed(compressed);
  const output = allocateFixed(text.length);
  const stream = new InflateStream("raw");
  for (const primedBytes of [0, 1]) {
    stream.reset();
    if (primedBytes === 1) stream.prime(8, compressed[0]!);
    stream.setDictionary(dictionary);
    stream.setInput(input, primedBytes, compressed.length);
    stream.setOutput(output, 0, output.bytes.length);
    assert.equal(stream.run(Z_NO_FLUSH), "end");
    assert.ok(output.bytes.equals(text));
    output.bytes.fill(0);
  }
  stream.close();
});

test("invalid data is an error with zlib's message", () => {
  const input = fixed(Buffer.from("no gzip at all"));
  const output = allocateFixed(10);
  const stream = new InflateStream("gzip");
  stream.setInput(input, 0, input.bytes.length);
  stream.setOutput(output, 0, output.bytes.length);
  assert.throws(
    () => stream.run(Z_NO_FLUSH),
    (error) => isClipError(error, "CORRUPT_GZIP") && error.message === "incorrect header check",
  );
  stream.close();
});

test("a closed stream refuses everything", () => {
  const stream = new InflateStream("raw");
  stream.close();
  stream.close();
  for (const use of [
    () => stream.run(Z_NO_FLUSH),
    () => stream.reset(),
    () => stream.prime(1, 0),
    () => stream.setDictionary(text),
  ]) {
    assert.throws(use, (error) => isClipError(error, "CLOSED"));
  }
});

test("memory that native code points to keeps its place", () => {
  const memory = allocateFixed(100);
  assert.equal(memory.bytes.length, 100);
  assert.ok(memory.bytes.every((byte) => byte === 0));
  assert.ok(memory.address > 0n);
});
