/** The digests of a layer that are taken while it is decoded. */
import { createHash } from "node:crypto";

/** What {@link LayerHashes} come to: raw sha256 digests. */
export interface LayerDigests {
  /** Of the compressed bytes. */
  compressed: Uint8Array;
  /** Of the uncompressed bytes. */
  uncompressed: Uint8Array;
  /** Of the uncompressed bytes of each span: 32 bytes a span, in order. */
  spans: Uint8Array;
}

/** Takes all bytes of a layer in order, compressed and uncompressed, and where its spans end. */
export interface LayerHashes {
  addCompressed(chunk: Uint8Array): void;
  addUncompressed(chunk: Uint8Array): void;
  endSpan(): void;
  /** Of no use afterwards. */
  end(): LayerDigests;
  /** For a layer that is given up. */
  close(): void;
}

/** Hashes in the calling thread. */
export class InlineHashes implements LayerHashes {
  readonly #compressed = createHash("sha256");
  readonly #uncompressed = createHash("sha256");
  readonly #spans: Buffer[] = [];
  #span = createHash("sha256");

  addCompressed(chunk: Uint8Array): void {
    this.#compressed.update(chunk);
  }

  addUncompressed(chunk: Uint8Array): void {
    this.#uncompressed.update(chunk);
    this.#span.update(chunk);
  }

  endSpan(): void {
    this.#spans.push(this.#span.digest());
    this.#span = createHash("sha256");
  }

  end(): LayerDigests {
    return {
      compressed: this.#compressed.digest(),
      uncompressed: this.#uncompressed.digest(),
      spans: Buffer.concat(this.#spans),
    };
  }

  close(): void {}
}
