/** Whether layers can be shared with the cluster. */
import { join } from "node:path";
import { digestOf } from "../../base/digest.ts";
import { describeError, isClipError } from "../../base/errors.ts";
import { contentKey } from "../../cache/content/content-cache.ts";
import { openSharing } from "../content-cache.ts";
import type { Finding } from "./finding.ts";
import { databases, openQueue, type NodeView, type Patient } from "./patient.ts";

const answerMs = 5_000;

/** Layers that wait to be stored and cannot be. */
export async function* checkStores(
  { config: { root, contentCache, sharing } }: Patient,
  { stores, layers }: NodeView,
): AsyncGenerator<Finding> {
  const known = new Set(layers.map(({ layerDigest }) => layerDigest));
  const isShared = contentCache.length > 0 && sharing.store;
  for (const entry of stores) {
    if (isShared && known.has(entry.layerDigest)) continue;
    const repair = async () => {
      const queue = openQueue(join(root, databases.stores));
      try {
        queue.settle(entry);
      } finally {
        queue.close();
      }
    };
    yield {
      severity: "warning",
      what: `a layer waits to be stored in the content cache, ${isShared ? "and is not on this node any more" : "and there is none to store it in"}`,
      where: entry.layerDigest,
      advice: "A repair takes it out of the queue.",
      repair,
    };
  }
}

/** Content caches that do not answer. */
export async function* checkContentCaches({
  config: { contentCache, sharing },
  log,
  signal,
}: Patient): AsyncGenerator<Finding> {
  const key = contentKey(digestOf(Buffer.from("clip doctor")), "doctor");
  for (const member of contentCache) {
    const where = member.name ?? member.kind;
    let opened: Awaited<ReturnType<typeof openSharing>>;
    try {
      opened = await openSharing({ contentCache: [member], sharing }, log);
      const bounded = AbortSignal.any([signal, AbortSignal.timeout(answerMs)]);
      await opened?.cluster.cache.has(key, { signal: bounded });
    } catch (error) {
      yield {
        severity: "error",
        what: `the content cache cannot be used: ${describeError(error)}`,
        where,
        advice:
          (isClipError(error) ? error.hint : undefined) ??
          "Check the server, the network to it, and [[content_cache]] in the configuration.",
      };
    } finally {
      await opened?.close();
    }
  }
}
