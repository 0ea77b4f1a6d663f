/** Spans from other blobs that hold the same layer, for when a registry has lost the first. */
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { RegistrySource } from "./registry-source.ts";
import type { SpanSource } from "./span-source.ts";

/** What {@link AlternateSource} is made with. */
export interface AlternateSourceOptions {
  /** Layer digests of the other blobs of the same diffID, as far as they are known now. */
  digests(): readonly Digest[];
  /** Opens one of them; undefined when it has no layer index. */
  open(layerDigest: Digest, signal: AbortSignal): Promise<RegistrySource | undefined>;
}

/**
 * The same layer, compressed by someone else: other compressed bytes, other spans, but the same
 * uncompressed ones. They are opened when they are first needed.
 */
export class AlternateSource implements SpanSource {
  readonly name = "alternate";
  readonly #options: AlternateSourceOptions;
  readonly #opened = new Map<Digest, RegistrySource>();

  constructor(options: AlternateSourceOptions) {
    this.#options = options;
  }

  /** @throws ClipError REGISTRY_*, CORRUPT_GZIP, CORRUPT_INDEX, ABORTED */
  async *stream(start: number, end: number, signal: AbortSignal): AsyncGenerator<Buffer> {
    let failure: unknown = new ClipError("REGISTRY_NOT_FOUND", "no other blob of it is known");
    let at = start;
    for (const digest of this.#options.digests()) {
      try {
        const source = this.#opened.get(digest) ?? (await this.#options.open(digest, signal));
        if (source === undefined) continue;
        this.#opened.set(digest, source);
        for await (const bytes of source.stream(at, end, signal)) {
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
}
