/** Which repositories hold the blobs of a layer. */
import { abortable } from "../base/concurrency.ts";
import type { Digest } from "../base/digest.ts";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { Repository } from "../registry/reference.ts";
import type { Log } from "../telemetry/log.ts";
import type { CompressedBlob } from "./registry-source.ts";
import type { LayerTarget } from "./target.ts";

/** A blob in a repository, as the registry client reads it. */
export interface RegistryBlob extends CompressedBlob {
  /** It is known that ranges of it cannot be had. */
  readonly ignoresRanges: boolean;
  /** Whether ranges of it can be had; asks for a byte of it if that is not known. */
  supportsRanges(signal?: AbortSignal): Promise<boolean>;
  /** The whole blob in order, several ranges of it under way at once. */
  parallelStream(options: {
    connections: number;
    chunkBytes: number;
    signal?: AbortSignal;
  }): AsyncIterable<Buffer>;
}

/** What layers need of the registry client. */
export interface LayerRegistry {
  has(repository: Repository, digest: Digest, signal?: AbortSignal): Promise<boolean>;
  blob(repository: Repository, digest: Digest, size: number): RegistryBlob;
}

/**
 * The repositories of a layer, those that have its blob first. A single one is not asked: reading
 * shows soon enough whether it has it.
 * @throws ClipError REGISTRY_* when none has it, ABORTED
 */
export async function repositoriesWithBlob(
  registry: LayerRegistry,
  target: LayerTarget,
  signal: AbortSignal,
  log: Log,
): Promise<Repository[]> {
  const { repositories, layerDigest } = target;
  if (repositories.length === 1) return repositories;
  const failures: unknown[] = [];
  const answers = repositories.map(async (repository, at) => {
    try {
      return await registry.has(repository, layerDigest, signal);
    } catch (error) {
      failures[at] = error;
      log.debug(
        { layer: layerDigest, host: repository.host, error: describeError(error) },
        "a repository could not be asked for a layer",
      );
      return false;
    }
  });
  // The first good one decides; those after it may take their time.
  for (const [at, answer] of answers.entries()) {
    const repository = repositories[at];
    if (repository === undefined || !(await abortable(answer, signal))) continue;
    return [repository, ...repositories.toSpliced(at, 1)];
  }
  // Some are guesses, of hosts that may not exist: one that is there and refuses tells more.
  throw (
    failures.find((failure) => isClipError(failure, "REGISTRY_DENIED")) ??
    failures.find((failure) => failure !== undefined) ??
    new ClipError("REGISTRY_NOT_FOUND", `no known repository has the layer ${layerDigest}`)
  );
}
