/** Where the spans of a layer can come from, and how a layer is divided into them. */
import { createHash } from "node:crypto";
import { digestBytes, digestFromBytes } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { SpanTable } from "../cache/span-map.ts";
import type { LayerHead } from "../index/model.ts";

/** A place that spans can be fetched from. What comes from it is not trusted. */
export interface SpanSource {
  /** For counters and the log: `registry`, … */
  readonly name: string;
  /**
   * The uncompressed bytes from `start` to `end` (exclusive) of the layer, in order, in pieces of any
   * size. Both are span boundaries.
   * @throws ClipError when they cannot be had
   */
  stream(start: number, end: number, signal: AbortSignal): AsyncIterable<Buffer>;
  /** What it does not have it leaves out: its stream may end before `end`, at a span boundary. */
  readonly mayEndEarly?: boolean;
  /** Told when the span that starts there was wrong. */
  onWrong?(start: number): void;
  /** When another source is asked besides; absent: only after it has failed. */
  readonly patience?: SourcePatience;
  /**
   * Asks it although it is being left alone, or was found not to have what is wanted: when every
   * source has failed there is nothing to lose.
   */
  readonly lastResort?: SpanSource;
}

/** How long a source may take. */
export interface SourcePatience {
  /** Longest wait for the next span, in milliseconds, until another source is asked as well. */
  milliseconds(): number;
  /** Told when that has happened. */
  spent(): void;
  /** Whether a source has failed that let wait for so long, and was slower than another one. */
  isOverdue(waitedMs: number): boolean;
}

/**
 * The division of a layer into spans, in memory that threads share. An empty layer has no spans.
 * @throws ClipError CORRUPT_INDEX when the spans do not follow each other from 0 to the end
 */
export function spanTableOf(head: LayerHead): SpanTable {
  const spans = head.uncompressedSize === 0 ? [] : head.spans;
  const bytes = new SharedArrayBuffer((spans.length + 1) * Float64Array.BYTES_PER_ELEMENT);
  const starts = new Float64Array(bytes);
  const hash = createHash("sha256").update(digestBytes(head.diffId));
  let end = 0;
  for (const [at, span] of spans.entries()) {
    if (span.checkpoint.uncompressedOffset !== end || span.length <= 0) throw gap(head, at);
    starts[at] = end;
    end += span.length;
    hash.update(digestBytes(span.digest));
  }
  if (end !== head.uncompressedSize) throw gap(head, spans.length);
  starts[spans.length] = end;
  hash.update(new Uint8Array(bytes.slice(0)));
  return { starts, digest: digestFromBytes(hash.digest()) };
}

function gap(head: LayerHead, span: number): ClipError {
  return new ClipError(
    "CORRUPT_INDEX",
    `the spans of ${head.layerDigest} do not follow each other at span ${span}`,
  );
}
