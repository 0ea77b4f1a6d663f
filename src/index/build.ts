/** Building a layer index in a thread of its own. */
import { abortable } from "../base/concurrency.ts";
import { ClipError } from "../base/errors.ts";
import { Build } from "./build-thread.ts";
import type { LayerPassOptions } from "./layer-pass.ts";
import type { LayerHead } from "./model.ts";
import { type LayerIndexReader, openLayerIndex } from "./reader.ts";
import { bufferSource } from "./sources.ts";

/** How an index is built. */
export interface BuildOptions extends LayerPassOptions {
  /** Ends the build; the source must end with it. */
  signal?: AbortSignal | undefined;
  /** Told now and then how many compressed bytes have been taken so far. */
  onProgress?: ((compressedBytes: number) => void) | undefined;
}

/** An index that has just been built. */
export interface BuiltLayerIndex {
  head: LayerHead;
  /** The index as it is stored and published. */
  encoded: Buffer;
  /** Reads from `encoded`; needs no closing. */
  reader: LayerIndexReader;
}

/**
 * Builds the index of a gzip layer in one pass: decodes it, checks it, hashes it, lists its files,
 * and writes its uncompressed bytes to `outputPath` where one is given (sparse, with its full
 * length, not synced; the file must be new or hold bytes of this layer).
 *
 * @param source the compressed layer: in chunks, which are copied, or as a local file
 * @throws ClipError CORRUPT_GZIP, CORRUPT_TAR, CORRUPT_LAYER (a digest is not the expected one),
 *   LIMIT_EXCEEDED, DISK_FULL, ABORTED, and what the source throws
 */
export async function buildLayerIndex(
  source: AsyncIterable<Buffer> | { path: string },
  options: BuildOptions,
): Promise<BuiltLayerIndex> {
  const { signal, onProgress, ...pass } = options;
  if (signal?.aborted === true) {
    throw new ClipError("ABORTED", "the caller gave up", { cause: signal.reason });
  }
  const path = "path" in source ? { path: source.path } : {};
  const build = new Build({ ...pass, ...path }, onProgress);
  const giveUp = () => build.stop();
  signal?.addEventListener("abort", giveUp, { once: true });
  try {
    if (!("path" in source)) await feed(build, source, signal);
    const encoded = await build.outcome;
    const reader = await openLayerIndex(bufferSource(encoded));
    return { head: reader.head, encoded, reader };
  } finally {
    signal?.removeEventListener("abort", giveUp);
    await build.close();
  }
}

async function feed(
  build: Build,
  source: AsyncIterable<Buffer>,
  signal: AbortSignal | undefined,
): Promise<void> {
  const chunks = source[Symbol.asyncIterator]();
  let isOver = false;
  try {
    for (;;) {
      const next = await abortable(chunks.next(), signal);
      if (next.done === true) break;
      for (let at = 0; at < next.value.length;) at += await build.add(next.value, at);
    }
    isOver = true;
    build.end();
  } finally {
    // Not awaited: a source that hangs would keep its caller from giving up.
    if (!isOver) chunks.return?.().catch(() => {});
  }
}
