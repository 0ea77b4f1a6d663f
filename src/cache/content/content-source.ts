/** Where the bytes of an object come from when it is stored. */
import { ClipError } from "../../base/errors.ts";
import type { RangeSource } from "../../base/range.ts";
import { orAborted } from "./operations.ts";

/**
 * Bytes to store. They can be streamed more than once, since a chain stores into several caches.
 * Buffers that were yielded belong to the receiver.
 */
export interface ContentSource {
  /** How many bytes the stream has. */
  readonly size: number;
  /** A stream from the first byte on. It should end soon after `signal` fires. */
  stream(signal: AbortSignal): AsyncIterable<Buffer>;
}

const streamChunkBytes = 1024 * 1024;

/** Bytes that are in memory. */
export function bufferSource(bytes: Buffer): ContentSource {
  return {
    size: bytes.length,
    async *stream() {
      await Promise.resolve();
      if (bytes.length > 0) yield bytes;
    },
  };
}

/** Bytes of a file or of anything else that can be read at any place, read 1 MiB at a time. */
export function rangeContentSource(source: RangeSource): ContentSource {
  return {
    size: source.size,
    async *stream(signal) {
      for (let offset = 0; offset < source.size; offset += streamChunkBytes) {
        yield await source.read(offset, Math.min(streamChunkBytes, source.size - offset), signal);
      }
    },
  };
}

/**
 * The bytes of `source` in pieces of exactly `chunkBytes`, the last one excepted. At most one piece
 * is held back here.
 * @throws ClipError ARGUMENT_INVALID when they are more or fewer than `source.size`;
 *   the reason of `signal` when it fires.
 */
export async function* exactChunks(
  source: ContentSource,
  chunkBytes: number,
  signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
  let chunk: Buffer | undefined;
  let filled = 0;
  let total = 0;
  for await (const bytes of untilAborted(source.stream(signal), signal)) {
    total += bytes.length;
    if (total > source.size) throw wrongLength(source, `more than ${source.size}`);
    for (let taken = 0; taken < bytes.length;) {
      chunk ??= Buffer.allocUnsafe(
        Math.min(chunkBytes, source.size - (total - bytes.length + taken)),
      );
      const copied = bytes.copy(chunk, filled, taken);
      taken += copied;
      filled += copied;
      if (filled === chunk.length) {
        yield chunk;
        chunk = undefined;
        filled = 0;
      }
    }
  }
  if (total < source.size) throw wrongLength(source, `only ${total} of ${source.size}`);
}

function wrongLength(source: ContentSource, what: string): ClipError {
  return new ClipError("ARGUMENT_INVALID", `what is to be stored has ${what} bytes`, {
    context: { size: source.size },
  });
}

async function* untilAborted<Item>(
  items: AsyncIterable<Item>,
  signal: AbortSignal,
): AsyncGenerator<Item, void, undefined> {
  const iterator = items[Symbol.asyncIterator]();
  let ended = false;
  try {
    for (;;) {
      const next = await orAborted(iterator.next(), signal);
      if (next.done === true) {
        ended = true;
        return;
      }
      yield next.value;
    }
  } finally {
    // Not awaited: a generator that hangs in a read would hold up whoever gave up on it.
    if (!ended) void Promise.resolve(iterator.return?.()).catch(() => {});
  }
}
