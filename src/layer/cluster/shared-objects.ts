/** The objects of layers in the content cache: their keys, and which copies are of no use now. */
import { digestKey, type Digest } from "../../base/digest.ts";
import { contentKey, type ContentKey } from "../../cache/content/content-cache.ts";
import type { CachedLayer } from "../../telemetry/events.ts";
import type { SharedLayer } from "./cluster-options.ts";

/** How long it is taken for granted that an object which was missed is still not there. */
const missedMs = 5_000;
/** How long a copy that was wrong is not read: somebody else may have repaired it. */
const quarantineMs = 5 * 60_000;
/** Layers about which something is remembered. */
const rememberedMax = 4_096;

/** What is known of one object. */
interface Knowledge {
  missedAt: number;
  /** It was there when it was last asked for. */
  present: boolean;
  /** When each cache's copy was found to be wrong. */
  wrong: Map<string, number>;
}

/** Names objects and remembers, for a while, what reading them has shown. */
export class SharedObjects {
  readonly #keyDerivation: "layer-digest" | "diffid";
  readonly #members: readonly string[];
  readonly #known = new Map<ContentKey, Knowledge>();
  readonly #now: () => number;

  constructor(options: {
    keyDerivation: "layer-digest" | "diffid";
    members: readonly string[];
    now?: () => number;
  }) {
    this.#keyDerivation = options.keyDerivation;
    this.#members = options.members;
    this.#now = options.now ?? (() => performance.now());
  }

  /** The key of the uncompressed bytes. */
  layerKey(layer: Pick<SharedLayer, "layerDigest" | "diffId">): ContentKey {
    return contentKey(this.#digestOf(layer), "layer");
  }

  /** The key of the layer index: that depends on how the layer was compressed. */
  indexKey(layerDigest: Digest): ContentKey {
    return contentKey(layerDigest, "index-1");
  }

  /** How the log calls a layer. */
  logged(layer: Pick<SharedLayer, "layerDigest" | "diffId">): CachedLayer {
    return { layer: layer.layerDigest, cacheKey: digestKey(this.#digestOf(layer)) };
  }

  /** Whether it makes sense to ask for the object now; or, if need be, although it was just missed. */
  isWorthAsking(key: ContentKey, insist = false): boolean {
    const known = this.#known.get(key);
    if (known === undefined) return true;
    if (!insist && this.#now() - known.missedAt < missedMs) return false;
    return this.wrongCopies(key).length < this.#members.length;
  }

  /** It was not there. */
  noteMiss(key: ContentKey): void {
    Object.assign(this.#knowledge(key), { missedAt: this.#now(), present: false });
  }

  /** Some of it was there. */
  noteHit(key: ContentKey): void {
    this.#knowledge(key).present = true;
  }

  /** Whether it was there when it was last asked for. */
  isPresent(key: ContentKey): boolean {
    return this.#known.get(key)?.present ?? false;
  }

  /** This node has stored it. */
  forget(key: ContentKey): void {
    this.#known.delete(key);
  }

  /** The copy of this cache was wrong. Whether that is new. */
  quarantine(key: ContentKey, cache: string): boolean {
    const isNew = !this.wrongCopies(key).includes(cache);
    this.#knowledge(key).wrong.set(cache, this.#now());
    return isNew;
  }

  /** The caches whose copies are not to be read. */
  wrongCopies(key: ContentKey): string[] {
    const since = this.#now() - quarantineMs;
    const wrong = this.#known.get(key)?.wrong ?? [];
    return [...wrong].filter(([, at]) => at > since).map(([cache]) => cache);
  }

  #digestOf({ layerDigest, diffId }: Pick<SharedLayer, "layerDigest" | "diffId">): Digest {
    return this.#keyDerivation === "diffid" ? diffId : layerDigest;
  }

  #knowledge(key: ContentKey): Knowledge {
    const known = this.#known.get(key) ?? { missedAt: -Infinity, present: false, wrong: new Map() };
    this.#known.delete(key);
    this.#known.set(key, known);
    const [oldest] = this.#known.keys();
    if (this.#known.size > rememberedMax && oldest !== undefined) this.#known.delete(oldest);
    return known;
  }
}
