/** The shape that all wrappers of a content cache have. */
import type {
  CallOptions,
  ContentCache,
  ContentHit,
  ContentInfo,
  ContentKey,
  ReadOptions,
  RemoveOptions,
  StoreOptions,
  StoreOutcome,
} from "./content-cache.ts";
import type { ContentSource } from "./content-source.ts";

/** A call on its way to the cache. */
export type Call =
  | {
      operation: "read";
      key: ContentKey;
      offset: number;
      bytes: number;
      insist: boolean;
      signal: CallSignal;
    }
  | { operation: "store"; key: ContentKey; bytes: number; signal: CallSignal }
  | { operation: "has" | "remove"; key: ContentKey; signal: CallSignal };

type CallSignal = AbortSignal | undefined;

/**
 * Stands between caller and cache: calls `proceed` or throws, and returns what that returned.
 * `signal` replaces that of the call.
 */
export type Interceptor = <Outcome extends CallOutcome>(
  call: Call,
  proceed: (signal: CallSignal) => Promise<Outcome>,
) => Promise<Outcome>;

/** What calls end with. */
export type CallOutcome = ContentHit | ContentInfo | StoreOutcome | undefined | void;

/** A cache like `cache`, with the same name, whose calls go through `interceptor`. */
export function intercept(cache: ContentCache, interceptor: Interceptor): ContentCache {
  return new InterceptedCache(cache, interceptor);
}

class InterceptedCache implements ContentCache {
  readonly name: string;
  readonly #cache: ContentCache;
  readonly #interceptor: Interceptor;

  constructor(cache: ContentCache, interceptor: Interceptor) {
    this.name = cache.name;
    this.#cache = cache;
    this.#interceptor = interceptor;
  }

  async read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options: ReadOptions = {},
  ): Promise<ContentHit | undefined> {
    const bytes = target.length;
    return this.#interceptor(
      {
        ...{ operation: "read", key, offset, bytes, insist: options.insist === true },
        signal: options.signal,
      },
      (signal) => this.#cache.read(key, offset, target, { ...options, signal }),
    );
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    return this.#interceptor(
      { operation: "store", key, bytes: source.size, signal: options.signal },
      (signal) => this.#cache.store(key, source, { ...options, signal }),
    );
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return this.#interceptor({ operation: "has", key, signal: options.signal }, (signal) =>
      this.#cache.has(key, { ...options, signal }),
    );
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    return this.#interceptor({ operation: "remove", key, signal: options.signal }, (signal) =>
      this.#cache.remove(key, { ...options, signal }),
    );
  }

  async close(): Promise<void> {
    await this.#cache.close();
  }
}
