/** The one pass over a gzip layer that yields everything its index holds. */
import { createHash } from "node:crypto";
import { type Digest, digestFromBytes } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import { GzipIndexBuilder } from "../gzip/build.ts";
import type { IndexedCheckpoint } from "../gzip/checkpoint.ts";
import type { TarEntry } from "../tar/entry.ts";
import { TarReader } from "../tar/reader.ts";
import type { LayerIndex, Span } from "./model.ts";
import { SparseFile } from "./sparse-file.ts";

/** What is expected of a layer, and what to do with it. */
export interface LayerPassOptions {
  /** Uncompressed bytes between two checkpoints, at least. */
  spanBytes: number;
  /** Expected sha256 of the compressed bytes. */
  layerDigest?: Digest | undefined;
  /** Expected sha256 of the uncompressed bytes. */
  diffId?: Digest | undefined;
  /** File for the uncompressed bytes. */
  outputPath?: string | undefined;
}

/** Takes a layer chunk by chunk, synchronously. Whoever creates one calls `end` or `close`. */
export class LayerPass {
  readonly #options: LayerPassOptions;
  readonly #compressed = createHash("sha256");
  readonly #uncompressed = createHash("sha256");
  #span = createHash("sha256");
  readonly #spans: Span[] = [];
  readonly #windows: Buffer[] = [];
  readonly #entries: TarEntry[] = [];
  readonly #tar = new TarReader({ onEntry: (entry) => this.#entries.push(entry) });
  readonly #gzip: GzipIndexBuilder;
  readonly #output: SparseFile | undefined;

  /** Opens the output file, if there is to be one. */
  constructor(options: LayerPassOptions) {
    this.#options = options;
    this.#output =
      options.outputPath === undefined ? undefined : new SparseFile(options.outputPath);
    this.#gzip = new GzipIndexBuilder({
      spanBytes: options.spanBytes,
      onOutput: (chunk) => this.#takeOutput(chunk),
      onSpan: (checkpoint) => this.#endSpan(checkpoint),
    });
  }

  /**
   * Takes the next compressed bytes.
   * @throws ClipError CORRUPT_GZIP, CORRUPT_TAR, LIMIT_EXCEEDED, DISK_FULL
   */
  write(chunk: Buffer): void {
    this.#compressed.update(chunk);
    this.#gzip.write(chunk);
  }

  /**
   * Says that the layer is over.
   * @throws as {@link write}, and CORRUPT_LAYER when a digest is not the expected one
   */
  end(): LayerIndex {
    const { compressedSize, uncompressedSize } = this.#gzip.end();
    const layerDigest = digestFromBytes(this.#compressed.digest());
    const diffId = digestFromBytes(this.#uncompressed.digest());
    // The digests come first: a layer that was damaged on its way may end in the middle of its tar.
    expect("the layer", layerDigest, this.#options.layerDigest);
    expect("the uncompressed layer", diffId, this.#options.diffId);
    this.#tar.end();
    this.#output?.end(uncompressedSize);
    return {
      head: { layerDigest, diffId, compressedSize, uncompressedSize, spans: this.#spans },
      entries: this.#entries,
      windows: this.#windows,
    };
  }

  /** Frees what is held, when the layer is given up. */
  close(): void {
    this.#gzip.close();
    this.#output?.close();
  }

  #takeOutput(chunk: Buffer): void {
    this.#uncompressed.update(chunk);
    this.#span.update(chunk);
    this.#tar.write(chunk);
    this.#output?.write(chunk);
  }

  #endSpan({ window, length, compressedEnd, ...checkpoint }: IndexedCheckpoint): void {
    const digest = digestFromBytes(this.#span.digest());
    this.#spans.push({ checkpoint, length, compressedEnd, digest });
    this.#windows.push(window);
    this.#span = createHash("sha256");
  }
}

function expect(what: string, found: Digest, expected: Digest | undefined): void {
  if (expected === undefined || found === expected) return;
  throw new ClipError("CORRUPT_LAYER", `${what} has the digest ${found}, not ${expected}`, {
    context: { found, expected },
  });
}
