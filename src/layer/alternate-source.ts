/** Spans from other blobs that hold the same layer, for when a registry has lost the first. */
import { abortable } from "../base/concurrency.ts";
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { SpanSource } from "./span-source.ts";

/** Another blob that is open. */
export interface AlternateBlob {
  source: Pick<SpanSource, "stream">;
  /** Closes the index that the source works with. */
  close(): Promise<void>;
}

/** What {@link AlternateSource} is made with. */
export interface AlternateSourceOptions {
  /** Layer digests of the other blobs of the same diffID, as far as they are known now. */
  digests(): readonly Digest[];
  /** Opens one of them; undefined when it has no layer index. */
  open(layerDigest: Digest, signal: AbortSignal): Promise<AlternateBlob | undefined>;
}

/**
 * The same layer, compressed by someone else: other compressed bytes, other spans, but the same
 * uncompressed ones. They are opened when they are first needed, and belong to this.
 */
export class AlternateSource implements SpanSource {
  readonly name = "alternate";
  readonly #options: AlternateSourceOptions;
  readonly #opened = new Map<Digest, Promise<AlternateBlob | undefined>>();
  readonly #closing = new AbortController();

  constructor(options: AlternateSourceOptions) {
    this.#options = options;
  }

  /** @throws ClipError REGISTRY_*, CORRUPT_GZIP, CORRUPT_INDEX, ABORTED */
  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    let failure: unknown = new ClipError("REGISTRY_NOT_FOUND", "no other blob of it is known");
    let at = start;
    for (const digest of this.#options.digests()) {
      try {
        const blob = await abortable(this.#open(digest), signal);
        if (blob === undefined) continue;
        for await (const bytes of blob.source.stream(at, end, signal)) {
          at += bytes.length;
          yield bytes;
        }
        return;
      } catch (error) {
        if (signal.aborted) throw error;
        failure = error;
      }
    }
    throw failure;
  }

  /** Closes what has been opened. Nothing may be streaming any more. */
  async close(): Promise<void> {
    this.#closing.abort();
    const opened = [...this.#opened.values()];
    this.#opened.clear();
    for (const opening of await Promise.allSettled(opened)) {
      if (opening.status === "fulfilled") await opening.value?.close();
    }
  }

  /** Whoever comes while it is being opened waits for the same; without success it is tried anew. */
  #open(digest: Digest): Promise<AlternateBlob | undefined> {
    const { signal } = this.#closing;
    if (signal.aborted) throw new ClipError("CLOSED", "the layer is closed");
    const known = this.#opened.get(digest);
    if (known !== undefined) return known;
    const opening = this.#options.open(digest, signal);
    this.#opened.set(digest, opening);
    const forget = () => {
      if (this.#opened.get(digest) === opening) this.#opened.delete(digest);
    };
    opening.then((blob) => blob ?? forget(), forget);
    return opening;
  }
}
