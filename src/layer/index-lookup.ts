/** Finds the published indexes of an image's layers, once for all of them. */
import type { Digest } from "../base/digest.ts";
import { describeError } from "../base/errors.ts";
import type { PublishedIndex } from "../index/published.ts";
import type { Repository } from "../registry/reference.ts";
import type { Log } from "../telemetry/log.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { LayerTarget } from "./target.ts";

/** How long an answer serves the other layers of the same image. */
const answerMs = 30_000;
/** The same where there is none for a layer: it may be published at any moment. */
const noneAnswerMs = 3_000;

/** The published indexes of the layers of an image manifest, by layer digest, best first. */
export type PublishedIndexes = ReadonlyMap<Digest, readonly PublishedIndex[]>;

/** Asks one repository for them. */
export type FindLayerIndexes = (
  repository: Repository,
  manifestDigest: Digest,
  signal: AbortSignal,
) => Promise<PublishedIndexes>;

/** What {@link IndexLookup} is made with. */
export interface IndexLookupOptions {
  find: FindLayerIndexes;
  log: Log;
  /** Milliseconds on a clock that nobody sets. Default: `performance.now`. */
  now?: () => number;
}

/** Asks registries for layer indexes; see the module. */
export class IndexLookup {
  readonly #options: IndexLookupOptions;
  readonly #now: () => number;
  readonly #asking = new SharedWork<PublishedIndexes>();
  readonly #answers = new Map<string, { at: number; indexes: PublishedIndexes }>();

  constructor(options: IndexLookupOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /**
   * The published indexes of a layer, from the first of these repositories that has any. Trouble
   * with a registry is logged and counts as none.
   * @throws ClipError ABORTED
   */
  async find(
    target: LayerTarget,
    repositories: readonly Repository[],
    signal: AbortSignal,
  ): Promise<readonly PublishedIndex[]> {
    for (const repository of repositories) {
      try {
        const found = await this.#ask(repository, target, signal);
        if (found.length > 0) return found;
      } catch (error) {
        if (signal.aborted) throw error;
        this.#options.log.warn(
          { layer: target.layerDigest, host: repository.host, error: describeError(error) },
          "a repository could not be asked for layer indexes",
        );
      }
    }
    return [];
  }

  async close(): Promise<void> {
    await this.#asking.close();
  }

  /** What a repository says, or has said a moment ago. That it could not be asked is not kept. */
  async #ask(
    repository: Repository,
    { manifestDigest, layerDigest }: LayerTarget,
    signal: AbortSignal,
  ): Promise<readonly PublishedIndex[]> {
    const key = `${repository.host}/${repository.name}@${manifestDigest}`;
    for (const [known, { at }] of this.#answers) {
      if (this.#now() - at > answerMs) this.#answers.delete(known);
    }
    const answer = this.#answers.get(key);
    const found = answer?.indexes.get(layerDigest) ?? [];
    if (answer !== undefined && (found.length > 0 || this.#now() - answer.at <= noneAnswerMs)) {
      return found;
    }
    const ask = async (shared: AbortSignal) => {
      const indexes = await this.#options.find(repository, manifestDigest, shared);
      this.#answers.set(key, { at: this.#now(), indexes });
      return indexes;
    };
    const indexes = await this.#asking.run(key, ask, signal);
    return indexes.get(layerDigest) ?? [];
  }
}
