/** The one pass over a gzip layer that yields everything its index holds. */
import { type Digest, digestFromBytes } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import { layerSpansMax } from "../base/limits.ts";
import { GzipIndexBuilder } from "../gzip/build.ts";
import type { IndexedCheckpoint } from "../gzip/checkpoint.ts";
import type { TarEntry } from "../tar/entry.ts";
import { TarReader } from "../tar/reader.ts";
import { packWindow, type PackedWindow } from "./compression.ts";
import type { PackedLayerIndex } from "./format.ts";
import type { LayerHashes } from "./layer-hashes.ts";
import type { Span } from "./model.ts";
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
  readonly #hashes: LayerHashes;
  readonly #spans: Omit<Span, "digest">[] = [];
  readonly #windows: PackedWindow[] = [];
  readonly #entries: TarEntry[] = [];
  readonly #tar = new TarReader({ onEntry: (entry) => this.#entries.push(entry) });
  readonly #gzip: GzipIndexBuilder;
  readonly #output: SparseFile | undefined;
  #hashesEnded = false;

  /** Owns `hashes` for the time of the pass. */
  constructor(options: LayerPassOptions, hashes: LayerHashes) {
    this.#options = options;
    this.#hashes = hashes;
    this.#output =
      options.outputPath === undefined ? undefined : new SparseFile(options.outputPath);
    this.#gzip = new GzipIndexBuilder({
      spanBytes: options.spanBytes,
      onOutput: (chunk) => this.#takeOutput(chunk),
      onSpan: (checkpoint) => this.#endSpan(checkpoint),
    });
  }

  /**
   * Opens the output file, if there is to be one.
   * @throws ClipError SYSTEM_CALL
   */
  open(): void {
    this.#output?.open();
  }

  /**
   * Takes the next compressed bytes.
   * @throws ClipError CORRUPT_GZIP, CORRUPT_TAR, LIMIT_EXCEEDED, DISK_FULL
   */
  write(chunk: Buffer): void {
    this.#hashes.addCompressed(chunk);
    this.#gzip.write(chunk);
  }

  /**
   * Says that the layer is over.
   * @throws as {@link write}, and CORRUPT_LAYER when a digest is not the expected one
   */
  end(): PackedLayerIndex {
    const { compressedSize, uncompressedSize } = this.#gzip.end();
    const digests = this.#hashes.end();
    this.#hashesEnded = true;
    const layerDigest = digestFromBytes(digests.compressed);
    const diffId = digestFromBytes(digests.uncompressed);
    // The digests come first: a layer that was damaged on its way may end in the middle of its tar.
    expect("the layer", layerDigest, this.#options.layerDigest);
    expect("the uncompressed layer", diffId, this.#options.diffId);
    this.#tar.end();
    this.#output?.end(uncompressedSize);
    const spans = this.#spans.map((span, index) => ({
      ...span,
      digest: digestFromBytes(digests.spans.subarray(index * 32, (index + 1) * 32)),
    }));
    return {
      head: { layerDigest, diffId, compressedSize, uncompressedSize, spans },
      entries: this.#entries,
      windows: this.#windows,
    };
  }

  /** Frees what is held, when the layer is given up. */
  close(): void {
    this.#gzip.close();
    this.#output?.close();
    // The last, since what hashes may have died.
    if (!this.#hashesEnded) this.#hashes.close();
    this.#hashesEnded = true;
  }

  #takeOutput(chunk: Buffer): void {
    this.#hashes.addUncompressed(chunk);
    this.#tar.write(chunk);
    this.#output?.write(chunk);
  }

  #endSpan({ window, length, compressedEnd, ...checkpoint }: IndexedCheckpoint): void {
    this.#hashes.endSpan();
    if (this.#spans.length === layerSpansMax) {
      throw new ClipError("LIMIT_EXCEEDED", `the layer has more than ${layerSpansMax} spans`, {
        hint: "Longer spans are fewer: layer.span_bytes.",
      });
    }
    this.#spans.push({ checkpoint, length, compressedEnd });
    this.#windows.push(packWindow(window));
  }
}

function expect(what: string, found: Digest, expected: Digest | undefined): void {
  if (expected === undefined || found === expected) return;
  throw new ClipError("CORRUPT_LAYER", `${what} has the digest ${found}, not ${expected}`, {
    context: { found, expected },
  });
}
