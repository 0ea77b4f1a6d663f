/** Spans from a registry: a range of the compressed blob, inflated from a checkpoint. */
import { ClipError, isClipError } from "../base/errors.ts";
import { spanAt } from "../cache/span-map.ts";
import { decodeSpan } from "../gzip/decode.ts";
import type { LayerHead, Span } from "../index/model.ts";
import type { Repository } from "../registry/reference.ts";
import type { SpanSource } from "./span-source.ts";

/** Spans that are decoded at the same time, in threads of the runtime. */
const decodesMax = 3;

/** A compressed layer that can be read from any place. */
export interface CompressedBlob {
  /** `length` bytes at `offset`, in chunks of whatever size. */
  stream(offset: number, length: number, signal?: AbortSignal): AsyncIterable<Buffer>;
}

/** The parts of a layer index that decoding needs. */
export interface SpanIndex {
  head: LayerHead;
  readWindow(span: number, signal?: AbortSignal): Promise<Buffer>;
}

/** A layer blob in one repository. */
export interface BlobPlace {
  repository: Repository;
  blob: CompressedBlob;
}

/** What {@link RegistrySource} is made with. */
export interface RegistrySourceOptions {
  index: SpanIndex;
  /** Where the blob may be, in the order in which they are asked. */
  places(): readonly BlobPlace[];
  /** This place had the blob although another was asked before. */
  onFound(repository: Repository): void;
}

/** The repositories that hold one blob, as a source of spans. */
export class RegistrySource implements SpanSource {
  readonly name = "registry";
  readonly #options: RegistrySourceOptions;
  readonly #starts: Float64Array;

  constructor(options: RegistrySourceOptions) {
    this.#options = options;
    const { spans, uncompressedSize } = options.index.head;
    this.#starts = new Float64Array(spans.length + 1);
    for (const [at, { checkpoint }] of spans.entries()) {
      this.#starts[at] = checkpoint.uncompressedOffset;
    }
    this.#starts[spans.length] = uncompressedSize;
  }

  /** @throws ClipError REGISTRY_*, CORRUPT_GZIP, CORRUPT_INDEX, ABORTED */
  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    let next = spanAt(this.#starts, start);
    const last = spanAt(this.#starts, end - 1);
    // The first is where it was, the others may be guesses: its failure tells more.
    let failure: unknown;
    for (const [rank, place] of this.#options.places().entries()) {
      try {
        for await (const bytes of this.#decoded(place.blob, next, last, signal)) {
          const from = this.#starts[next] ?? 0;
          next++;
          yield bytes.subarray(Math.max(0, start - from), end - from);
        }
        if (rank > 0) this.#options.onFound(place.repository);
        return;
      } catch (error) {
        if (signal.aborted || !mayBeElsewhere(error)) throw error;
        failure ??= error;
      }
    }
    throw failure ?? new ClipError("REGISTRY_NOT_FOUND", "no repository is known to hold it");
  }

  async *#decoded(blob: CompressedBlob, first: number, last: number, signal: AbortSignal) {
    const { spans } = this.#options.index.head;
    const origin = spans[first]?.checkpoint.compressedOffset ?? 0;
    const end = spans[last]?.compressedEnd ?? origin;
    const received = new Received(origin);
    const decoding: Promise<Buffer>[] = [];
    let at = first;
    for await (const chunk of blob.stream(origin, end - origin, signal)) {
      received.add(chunk);
      for (; at <= last; at++) {
        const span = spans[at];
        if (span === undefined || span.compressedEnd > received.end) break;
        const compressed = received.take(span, spans[at + 1]);
        const decoded = this.#decode(at, span, compressed, signal);
        // A failure is seen when its turn comes, or never, if the reader leaves before.
        decoded.catch(() => {});
        decoding.push(decoded);
        const oldest = decoding.length < decodesMax ? undefined : decoding.shift();
        if (oldest !== undefined) yield await oldest;
      }
    }
    for (const decoded of decoding) yield await decoded;
  }

  async #decode(at: number, span: Span, compressed: Buffer, signal: AbortSignal): Promise<Buffer> {
    const window = await this.#options.index.readWindow(at, signal);
    const { checkpoint, length } = span;
    return decodeSpan({ compressed, checkpoint, window, length });
  }
}

/** Compressed bytes that have arrived and are still needed. */
class Received {
  end: number;
  #start: number;
  #chunks: Buffer[] = [];

  constructor(origin: number) {
    this.#start = origin;
    this.end = origin;
  }

  add(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.end += chunk.length;
  }

  /** The bytes of a span; those that the next one does not need, either, are let go. */
  take(span: Span, next: Span | undefined): Buffer {
    const all = Buffer.concat(this.#chunks);
    const from = span.checkpoint.compressedOffset - this.#start;
    const until = span.compressedEnd - this.#start;
    const keepFrom = (next?.checkpoint.compressedOffset ?? span.compressedEnd) - this.#start;
    this.#chunks = [all.subarray(keepFrom)];
    this.#start += keepFrom;
    return all.subarray(from, until);
  }
}

// Another repository, or a second look, may do better; anything else would fail there, too.
function mayBeElsewhere(error: unknown): boolean {
  return isClipError(error) && (isRegistryFailure(error) || error.code === "CORRUPT_GZIP");
}

/** Whether a registry failed, so that another one may be asked. */
export function isRegistryFailure(error: unknown): boolean {
  return isClipError(error) && error.code.startsWith("REGISTRY_");
}
