/**
 * The content cache: bytes under a key, shared by the nodes of a cluster, of which any range can be
 * read. It is a cache: whatever it holds can be had from the registry too, so losing all of it is
 * no fault, and nothing here is trusted until its digest has been checked by the caller.
 */
import { digestKey, type Digest } from "../../base/digest.ts";
import { ClipError, isClipError } from "../../base/errors.ts";
import type { ContentSource } from "./content-source.ts";

declare const keyBrand: unique symbol;

/**
 * The name of an object: `sha256_<64 hex digits>.<kind>`, for example `sha256_ab….blob`. One flat
 * name without a slash is a file name, an object name and a Redis key as it stands.
 */
export type ContentKey = string & { readonly [keyBrand]: true };

const kindPattern = /^[a-z][a-z0-9-]{0,31}$/;
const keyPattern = /^sha256_[0-9a-f]{64}\.[a-z][a-z0-9-]{0,31}$/;

/**
 * The key of what is derived from `digest`; `kind` tells the derivations apart.
 * @throws ClipError ARGUMENT_INVALID unless the kind is a lower-case letter and up to 31 more of
 *   `a-z`, `0-9` and `-`.
 */
export function contentKey(digest: Digest, kind: string): ContentKey {
  if (!kindPattern.test(kind)) {
    throw new ClipError("ARGUMENT_INVALID", `not a kind of content: ${JSON.stringify(kind)}`);
  }
  return `${digestKey(digest)}.${kind}` as ContentKey;
}

/** Whether `text` has the form of a key. */
export function isContentKey(text: string): text is ContentKey {
  return keyPattern.test(text);
}

/** What every call takes. */
export interface CallOptions {
  /** Ends the call with ABORTED, or with the reason where that is a ClipError. */
  signal?: AbortSignal | undefined;
}

/** How to read. */
export interface ReadOptions extends CallOptions {
  /** Names of caches whose copy is known to be bad: a chain does not ask them. */
  except?: readonly string[] | undefined;
  /** Ask also caches that are being left alone because they failed: nobody else has the bytes. */
  insist?: boolean | undefined;
}

/** How to store. */
export interface StoreOptions extends CallOptions {
  /** Put the object in place of the one that is there, to repair it. */
  replace?: boolean | undefined;
  /**
   * Names of caches that have done so in an earlier attempt: a chain has them keep what they have, and
   * adds those that do it in this one.
   */
  replaced?: Set<string> | undefined;
}

/** What to remove. */
export interface RemoveOptions extends CallOptions {
  /** Only the copy of the cache with this name (what {@link ContentHit.from} said). */
  only?: string | undefined;
}

/** A range that was there. */
export interface ContentHit {
  /** Name of the cache that gave the bytes: in a chain, of its member. */
  readonly from: string;
}

/** An object that is there. */
export interface ContentInfo extends ContentHit {
  /** Length in bytes. */
  readonly size: number;
}

/**
 * What became of an object that was to be stored: `stored`; `present`, because it was there or
 * another node was faster; `refused`, because this cache takes no such object, now or later.
 */
export type StoreOutcome = "stored" | "present" | "refused";

/**
 * One content cache. All implementations share these rules:
 *
 * - A miss is `undefined`, never an error. An error says that it is not known whether the object is
 *   there; see {@link isWorthRetrying} for what to do about it.
 * - Errors are ClipErrors: `CACHE_UNAVAILABLE` (down, unreachable, overloaded, connection lost),
 *   `CACHE_DENIED` (credentials, permissions, no such bucket), `CACHE_PROTOCOL` (it holds or
 *   answers something else than what was asked for), `CACHE_FULL` (no room to store), `TIMEOUT`,
 *   `ABORTED`, `CLOSED`, and `ARGUMENT_INVALID` for calls that cannot be right. Neither they nor
 *   their causes contain credentials.
 * - No call waits without bound, and an aborted one ends at once, whatever the server does.
 * - Any number of calls may be under way; memory grows with their number only (see each `open…`).
 */
export interface ContentCache {
  /** For logs, counters and {@link ContentHit.from}. Unique in a chain. */
  readonly name: string;

  /**
   * Fills `target` with the bytes at `offset`; the length of the range is that of `target`. Once
   * the promise has settled `target` is never written to again; unless it is a hit, what `target`
   * then contains is not defined.
   * @returns undefined when there is no such object.
   * @throws ClipError CACHE_PROTOCOL when the object ends before the range does; never a short read.
   */
  read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options?: ReadOptions,
  ): Promise<ContentHit | undefined>;

  /**
   * Stores all that `source` gives. Until it is complete nobody sees anything of it; if it fails
   * nothing stays but what the cache cleans up by itself later. Of several stores of a key at the
   * same time, by whatever nodes, one wins and all succeed. An object that is already there is
   * kept, whatever its bytes, unless `replace` is set.
   * @throws ClipError ARGUMENT_INVALID when the source does not give as many bytes as it promised;
   *   what the source throws is passed on.
   */
  store(key: ContentKey, source: ContentSource, options?: StoreOptions): Promise<StoreOutcome>;

  /** Whether the object is there, and its size, without reading it. */
  has(key: ContentKey, options?: CallOptions): Promise<ContentInfo | undefined>;

  /** Removes the object, if it is there. Reads of it that are under way may fail or miss. */
  remove(key: ContentKey, options?: RemoveOptions): Promise<void>;

  /** Ends what is under way with CLOSED, and frees connections and files. */
  close(): Promise<void>;
}

/**
 * Whether the same call may succeed a while later without anybody doing anything. Where not, trying
 * again is in vain until the configuration, the credentials or the object have changed.
 */
export function isWorthRetrying(error: unknown): boolean {
  return (
    isClipError(error, "CACHE_UNAVAILABLE") ||
    isClipError(error, "CACHE_FULL") ||
    isClipError(error, "TIMEOUT")
  );
}

/** @throws ClipError ARGUMENT_INVALID unless the range is one that an object could have. */
export function checkRange(offset: number, length: number): void {
  if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(offset + length)) {
    throw new ClipError("ARGUMENT_INVALID", `no such range: ${length} bytes at ${offset}`);
  }
}
