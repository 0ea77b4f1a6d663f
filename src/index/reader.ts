/** Reading a layer index in pieces, wherever it is. */
import { type Digest, digestOf } from "../base/digest.ts";
import type { RangeSource } from "../base/range.ts";
import type { TarEntry } from "../tar/entry.ts";
import { corruptIndex } from "./failure.ts";
import { decodeFileTable } from "./file-table.ts";
import { decodeHead, decodePreamble, type IndexHead, openSection, type Section } from "./format.ts";
import type { LayerHead } from "./model.ts";
import { decodeSpans, decodeWindow, type StoredWindow } from "./spans.ts";

/** Where the bytes of an index are; whoever opens the index hands it over. */
export interface IndexSource extends RangeSource {
  close?(): Promise<void>;
}

/** What is known of an index before it is opened. */
export interface OpenOptions {
  /** Digest of the preamble and the head, where another trusted document states it. */
  headDigest?: Digest | undefined;
  signal?: AbortSignal | undefined;
}

/** Sizes of an index's parts in bytes, as they are stored. */
export interface IndexSizes {
  head: number;
  spans: number;
  files: number;
  windows: number;
  total: number;
}

// Enough for the head and the spans of a layer of a gigabyte.
const firstReadBytes = 64 * 1024;

/**
 * Opens an index: reads its head and its spans and checks them. Closing the reader closes `source`;
 * when opening fails, the caller keeps it.
 * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED, and what the source throws
 */
export async function openLayerIndex(
  source: IndexSource,
  options: OpenOptions = {},
): Promise<LayerIndexReader> {
  const { headDigest, signal } = options;
  const first = await source.read(0, Math.min(firstReadBytes, source.size), signal);
  const headEnd = decodePreamble(first);
  if (headEnd > source.size) throw corruptIndex("it is shorter than its head");
  const headBytes =
    headEnd <= first.length
      ? first.subarray(0, headEnd)
      : Buffer.concat([first, await source.read(first.length, headEnd - first.length, signal)]);
  const foundDigest = digestOf(headBytes);
  if (headDigest !== undefined && foundDigest !== headDigest) {
    throw corruptIndex("its head does not match its digest");
  }
  const head = decodeHead(headBytes);
  if (head.size !== source.size) throw corruptIndex("it has another length than its head says");
  const { offset, storedLength } = head.spans;
  const spansBytes =
    offset + storedLength <= first.length
      ? first.subarray(offset, offset + storedLength)
      : await source.read(offset, storedLength, signal);
  const decoded = decodeSpans(openSection(spansBytes, head.spans), head, head.windows.storedLength);
  return new LayerIndexReader(source, { ...head, digest: foundDigest }, decoded);
}

/** An open layer index. Owns its source. */
export class LayerIndexReader {
  readonly head: LayerHead;
  /** Digest of the preamble and the head: since that has the digests of the rest, of all of it. */
  readonly headDigest: Digest;
  readonly sizes: IndexSizes;
  readonly #source: IndexSource;
  readonly #files: Section;
  readonly #windowsOffset: number;
  readonly #windows: readonly StoredWindow[];

  /** For {@link openLayerIndex}. */
  constructor(
    source: IndexSource,
    head: IndexHead & { digest: Digest },
    { spans, windows }: { spans: LayerHead["spans"]; windows: readonly StoredWindow[] },
  ) {
    const { layerDigest, diffId, compressedSize, uncompressedSize, ...rest } = head;
    this.headDigest = head.digest;
    this.head = { layerDigest, diffId, compressedSize, uncompressedSize, spans };
    this.sizes = {
      head: rest.spans.offset,
      spans: rest.spans.storedLength,
      files: rest.files.storedLength,
      windows: rest.windows.storedLength,
      total: rest.size,
    };
    this.#source = source;
    this.#files = rest.files;
    this.#windowsOffset = rest.windows.offset;
    this.#windows = windows;
  }

  /**
   * The entries of the tar in its order. They are decoded anew with each call.
   * @throws ClipError CORRUPT_INDEX, LIMIT_EXCEEDED, and what the source throws
   */
  async readEntries(signal?: AbortSignal): Promise<TarEntry[]> {
    return decodeFileTable(await this.readFileTable(signal), this.head.uncompressedSize);
  }

  /**
   * The file table as `decodeFileTable` takes it, so that it can be decoded in another thread.
   * @throws ClipError CORRUPT_INDEX, and what the source throws
   */
  async readFileTable(signal?: AbortSignal): Promise<Buffer> {
    const { offset, storedLength } = this.#files;
    return openSection(await this.#source.read(offset, storedLength, signal), this.#files);
  }

  /**
   * The window of the checkpoint of span number `span`: sparse, at most 32 KiB, empty where the
   * span needs none.
   * @throws ClipError CORRUPT_INDEX, and what the source throws
   */
  async readWindow(span: number, signal?: AbortSignal): Promise<Buffer> {
    const stored = this.#windows[span];
    if (stored === undefined) throw new RangeError(`no span ${span}`);
    if (stored.length === 0) return Buffer.alloc(0);
    const offset = this.#windowsOffset + stored.offset;
    return decodeWindow(await this.#source.read(offset, stored.length, signal), stored);
  }

  /** Closes what the index is read from. */
  async close(): Promise<void> {
    await this.#source.close?.();
  }
}
