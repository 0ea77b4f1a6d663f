/** Several content caches as one: the fast and small before the slow and large. */
import { ClipError, describeError } from "../../base/errors.ts";
import {
  isWorthRetrying,
  type CallOptions,
  type ContentCache,
  type ContentHit,
  type ContentInfo,
  type ContentKey,
  type ReadOptions,
  type RemoveOptions,
  type StoreOptions,
  type StoreOutcome,
} from "./content-cache.ts";
import type { ContentSource } from "./content-source.ts";
import { asCacheFault } from "./failure.ts";

/** A cache in a chain, and what it is used for. */
export interface ChainMember {
  cache: ContentCache;
  /** Largest object that is stored here. Default: no limit. */
  objectBytesMax?: number;
  /** Only read: nothing is stored here or removed from here. Default: false. */
  readOnly?: boolean;
}

/**
 * A chain of caches; it owns them.
 *
 * - `read` and `has` ask one after the other until one has it. A member that fails is passed over.
 *   When none has it, that is a miss if all of them missed; if one failed it is that failure, since
 *   then it is not known. Members named in `except` are not asked.
 * - `store` puts the object into every member that takes it, one after the other, reading the
 *   source anew for each. One that fails does not keep the others from being tried, but is thrown
 *   at the end: store again later, and the others say `present`, also with `replace` if they are
 *   named in `replaced`. Otherwise `stored` if any stored it, `present` if none had to, `refused` if
 *   none takes it.
 * - `remove` removes it from all members but the read-only ones, or from the one named in `only`.
 */
export function chainOf(members: readonly ChainMember[]): ContentCache {
  const names = new Set(members.map(({ cache }) => cache.name));
  if (members.length === 0 || names.size < members.length) {
    throw new ClipError("ARGUMENT_INVALID", "a chain needs caches with different names");
  }
  return new ChainedCache(members);
}

class ChainedCache implements ContentCache {
  readonly name: string;
  readonly #members: readonly ChainMember[];

  constructor(members: readonly ChainMember[]) {
    this.name = members.map(({ cache }) => cache.name).join("+");
    this.#members = members;
  }

  async read(
    key: ContentKey,
    offset: number,
    target: Buffer,
    options: ReadOptions = {},
  ): Promise<ContentHit | undefined> {
    const asked = this.#members.filter(
      ({ cache }) => options.except?.includes(cache.name) !== true,
    );
    return firstFound(asked, (cache) => cache.read(key, offset, target, options));
  }

  async store(
    key: ContentKey,
    source: ContentSource,
    options: StoreOptions = {},
  ): Promise<StoreOutcome> {
    const outcomes: StoreOutcome[] = [];
    const failures: ClipError[] = [];
    for (const { cache, objectBytesMax = Infinity, readOnly = false } of this.#members) {
      if (readOnly || source.size > objectBytesMax) continue;
      try {
        const replace = options.replace === true && options.replaced?.has(cache.name) !== true;
        outcomes.push(await cache.store(key, source, { ...options, replace }));
        if (replace) options.replaced?.add(cache.name);
      } catch (error) {
        failures.push(asCacheFault(error));
      }
    }
    throwFailures(failures);
    if (outcomes.includes("stored")) return "stored";
    return outcomes.includes("present") ? "present" : "refused";
  }

  async has(key: ContentKey, options: CallOptions = {}): Promise<ContentInfo | undefined> {
    return firstFound(this.#members, (cache) => cache.has(key, options));
  }

  async remove(key: ContentKey, options: RemoveOptions = {}): Promise<void> {
    const failures: ClipError[] = [];
    for (const { cache, readOnly = false } of this.#members) {
      if (readOnly || (options.only !== undefined && options.only !== cache.name)) continue;
      try {
        await cache.remove(key, options);
      } catch (error) {
        failures.push(asCacheFault(error));
      }
    }
    throwFailures(failures);
  }

  async close(): Promise<void> {
    await Promise.all(this.#members.map(({ cache }) => cache.close()));
  }
}

async function firstFound<Found>(
  members: readonly ChainMember[],
  ask: (cache: ContentCache) => Promise<Found | undefined>,
): Promise<Found | undefined> {
  const failures: ClipError[] = [];
  for (const { cache } of members) {
    try {
      const found = await ask(cache);
      if (found !== undefined) return found;
    } catch (error) {
      failures.push(asCacheFault(error));
    }
  }
  throwFailures(failures);
  return undefined;
}

/** Throws the failure that is most worth another try; the others go along as its cause. */
function throwFailures(failures: readonly ClipError[]): void {
  const main = failures.find(isWorthRetrying) ?? failures[0];
  if (main === undefined) return;
  if (failures.length === 1) throw main;
  throw new ClipError(main.code, failures.map(describeError).join("; "), {
    ...(main.hint === undefined ? {} : { hint: main.hint }),
    cause: new AggregateError(failures),
    context: main.context,
  });
}
