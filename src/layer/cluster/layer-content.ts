/** The bytes of a layer on disk, on their way into the content cache. */
import { hash } from "node:crypto";
import { open } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { ClipError } from "../../base/errors.ts";
import type { ContentSource } from "../../cache/content/content-source.ts";
import { readFully } from "../../cache/files.ts";
import type { LayerHead } from "../../index/model.ts";

/** Where the bytes are, and how they are read. */
export interface LayerContentOptions {
  path: string;
  head: LayerHead;
  /** Waits while readers wait. */
  makeWay: (signal: AbortSignal) => Promise<void>;
  bytesPerSecond?: number | undefined;
}

/**
 * The uncompressed layer, span after span. Each is checked, since the file may be evicted or go bad
 * while it is being read: the stream then fails with CORRUPT_LAYER.
 */
export function layerContent(options: LayerContentOptions): ContentSource {
  const { uncompressedSize: size, spans } = options.head;
  return {
    size,
    async *stream(signal) {
      if (size === 0) return;
      const file = await open(options.path, "r");
      try {
        for (const span of spans) {
          await options.makeWay(signal);
          const startedAt = performance.now();
          const bytes = await readFully(file, span.checkpoint.uncompressedOffset, span.length);
          if (bytes === undefined || `sha256:${hash("sha256", bytes)}` !== span.digest) {
            throw new ClipError("CORRUPT_LAYER", "the layer on disk has changed");
          }
          yield bytes;
          await pace(bytes.length, performance.now() - startedAt, options.bytesPerSecond, signal);
        }
      } finally {
        await file.close();
      }
    },
  };
}

async function pace(
  bytes: number,
  tookMs: number,
  bytesPerSecond: number | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (bytesPerSecond === undefined) return;
  const restMs = (bytes / bytesPerSecond) * 1000 - tookMs;
  if (restMs > 0) await sleep(restMs, undefined, { signal });
}
