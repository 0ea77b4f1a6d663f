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
/** The same for the answer that there are none: they may be published at any moment. */
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
}

/** Asks registries for layer indexes; see the module. */
export class IndexLookup {
  readonly #options: IndexLookupOptions;
  readonly #asking = new SharedWork<PublishedIndexes>();
  readonly #answers = new Map<string, { at: number; indexes: PublishedIndexes }>();

  constructor(options: IndexLookupOptions) {
    this.#options = options;
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
        const indexes = await this.#ask(repository, target.manifestDigest, signal);
        const found = indexes.get(target.layerDigest);
        if (found !== undefined && found.length > 0) return found;
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

  async #ask(
    repository: Repository,
    manifestDigest: Digest,
    signal: AbortSignal,
  ): Promise<PublishedIndexes> {
    const key = `${repository.host}/${repository.name}@${manifestDigest}`;
    const now = performance.now();
    for (const [known, { at, indexes }] of this.#answers) {
      if (now - at > (indexes.size === 0 ? noneAnswerMs : answerMs)) this.#answers.delete(known);
    }
    const answer = this.#answers.get(key);
    if (answer !== undefined) return answer.indexes;
    const ask = async (shared: AbortSignal) => {
      const indexes = await this.#options.find(repository, manifestDigest, shared);
      this.#answers.set(key, { at: performance.now(), indexes });
      return indexes;
    };
    return this.#asking.run(key, ask, signal);
  }
}
