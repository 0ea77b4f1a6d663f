/** Compares what the disk holds of a layer with its digests, past the kernel's page cache. */
import { createHash, webcrypto } from "node:crypto";
import type { Digest } from "../base/digest.ts";
import { DirectFile } from "../os/direct-file.ts";
import type { LayerHead } from "../index/model.ts";

const wholeChunkBytes = 1024 * 1024;

/** Spans of a layer that are on disk. */
export interface SpansOnDisk {
  path: string;
  head: LayerHead;
  /** By span, zero where it is not there; another value when it has come anew. May be shared. */
  present: Uint8Array;
}

/** How the disk is read. */
export interface CheckPace {
  /** Waits before so many bytes are read. */
  before: (bytes: number, signal: AbortSignal) => Promise<void>;
  signal: AbortSignal;
}

/** What was read, and what of it was wrong. */
export interface SpanFindings {
  spans: number;
  bytes: number;
  /** Spans whose bytes do not match their digest, or cannot be read. */
  damaged: number[];
}

/**
 * Checks those spans that are present; those that go or come anew meanwhile do not count.
 * @param only these spans; default: all
 * @throws AbortError, Error of the system call when the file cannot be opened
 */
export async function checkSpans(
  { path, head, present }: SpansOnDisk,
  { before, signal }: CheckPace,
  only: Iterable<number> = present.keys(),
): Promise<SpanFindings> {
  const found: SpanFindings = { spans: 0, bytes: 0, damaged: [] };
  const file = await DirectFile.open(path);
  try {
    for (const at of only) {
      const span = head.spans[at];
      const flag = Atomics.load(present, at);
      if (flag === 0 || span === undefined) continue;
      await before(span.length, signal);
      signal.throwIfAborted();
      const { checkpoint, length, digest } = span;
      const isRight = (await digestAt(file, checkpoint.uncompressedOffset, length)) === digest;
      if (Atomics.load(present, at) !== flag) continue;
      found.spans++;
      found.bytes += length;
      if (!isRight) found.damaged.push(at);
    }
  } finally {
    await file.close();
  }
  return found;
}

/**
 * Whether the whole file matches a digest; not if it cannot be read.
 * @throws AbortError, Error of the system call when the file cannot be opened
 */
export async function checkWhole(
  { path, size, digest }: { path: string; size: number; digest: Digest },
  { before, signal }: CheckPace,
): Promise<boolean> {
  const file = await DirectFile.open(path);
  const hash = createHash("sha256");
  try {
    for (let offset = 0; offset < size; offset += wholeChunkBytes) {
      const length = Math.min(wholeChunkBytes, size - offset);
      await before(length, signal);
      signal.throwIfAborted();
      const bytes = await file.read(offset, length).catch(() => undefined);
      if (bytes === undefined) return false;
      hash.update(bytes);
    }
  } finally {
    await file.close();
  }
  return `sha256:${hash.digest("hex")}` === digest;
}

/** Undefined when the disk does not give the bytes. */
async function digestAt(file: DirectFile, offset: number, length: number) {
  const bytes = await file.read(offset, length).catch(() => undefined);
  if (bytes === undefined) return undefined;
  // In a thread of the runtime: spans can be large.
  const digest = await webcrypto.subtle.digest("SHA-256", bytes);
  return `sha256:${Buffer.from(digest).toString("hex")}`;
}
