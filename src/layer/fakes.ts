/** Layers and sources made up for tests. */
import { createCipheriv, createHash } from "node:crypto";
import { digestOf } from "../base/digest.ts";
import type { ClipError } from "../base/errors.ts";
import type { LayerHead, Span } from "../index/model.ts";
import type { SpanSource } from "./span-source.ts";

/** A layer that exists only in memory. */
export interface FakeLayer {
  bytes: Buffer;
  head: LayerHead;
}

/** A layer of so many spans of so many bytes; the compressed stream is pretended to be half. */
export function fakeLayer(spanCount: number, spanBytes: number, seed = "layer"): FakeLayer {
  const key = createHash("sha256").update(seed).digest();
  const keystream = createCipheriv("aes-256-ctr", key, Buffer.alloc(16));
  const bytes = keystream.update(Buffer.alloc(spanCount * spanBytes));
  const spans: Span[] = [];
  for (let at = 0; at < spanCount; at++) {
    const start = at * spanBytes;
    spans.push({
      checkpoint: { compressedOffset: start / 2, bitOffset: 0, uncompressedOffset: start },
      length: spanBytes,
      compressedEnd: (start + spanBytes) / 2,
      digest: digestOf(bytes.subarray(start, start + spanBytes)),
    });
  }
  const head: LayerHead = {
    layerDigest: digestOf(Buffer.from(`compressed ${seed}`)),
    diffId: digestOf(bytes),
    compressedSize: bytes.length / 2,
    uncompressedSize: bytes.length,
    spans,
  };
  return { bytes, head };
}

/** A source that can be held up, fail, end early and lie; it notes what it was asked for. */
export class FakeSource implements SpanSource {
  readonly name: string;
  readonly requests: { start: number; end: number }[] = [];
  running = 0;
  runningMax = 0;
  /** Index of a span of which it gives wrong bytes. */
  damageSpan: number | undefined;
  /** Offset at which its answers end. */
  endAt: number | undefined;
  failure: ClipError | undefined;
  /** Why it was last given up. */
  abortReason: unknown;
  readonly #layer: FakeLayer;
  #gate: Promise<void> = Promise.resolve();
  #open: () => void = () => {};

  constructor(layer: FakeLayer, name = "registry") {
    this.#layer = layer;
    this.name = name;
  }

  /** Answers nothing until {@link release}. */
  hold(): void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#gate = promise;
    this.#open = resolve;
  }

  release(): void {
    this.#open();
  }

  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    this.requests.push({ start, end });
    this.running++;
    this.runningMax = Math.max(this.runningMax, this.running);
    signal.addEventListener("abort", () => (this.abortReason = signal.reason), { once: true });
    try {
      signal.throwIfAborted();
      const aborted = new Promise<never>((_, reject) =>
        signal.addEventListener("abort", () => reject(new Error("aborted")), { once: true }),
      );
      await Promise.race([this.#gate, aborted]);
      if (this.failure !== undefined) throw this.failure;
      const bytes = Buffer.from(
        this.#layer.bytes.subarray(start, Math.min(end, this.endAt ?? end)),
      );
      const damaged = this.#layer.head.spans[this.damageSpan ?? -1]?.checkpoint.uncompressedOffset;
      if (damaged !== undefined && damaged >= start && damaged < end) {
        bytes[damaged - start] = (bytes[damaged - start] ?? 0) ^ 1;
      }
      // Pieces that have nothing to do with spans.
      for (let at = 0; at < bytes.length; at += 777_777) yield bytes.subarray(at, at + 777_777);
    } finally {
      this.running--;
    }
  }
}
