/** Everything of clip that takes bytes from outside, by name, with its share of a campaign. */
import type { FuzzTarget, TargetEntry } from "./engine/target.ts";

const gzip = () => import("./targets/gzip.ts");
const tar = () => import("./targets/tar.ts");
const index = () => import("./targets/index.ts");
const text = () => import("./targets/text.ts");
const documents = () => import("./targets/documents.ts");

/** The slow ones first, so that no thread is left with one of them in the end. */
export const targets: Readonly<Record<string, TargetEntry>> = {
  "snapshot-calls": share(
    1_500,
    async () => (await import("./targets/snapshots.ts")).snapshotCalls,
  ),
  "registry-answers": share(
    4_000,
    async () => (await import("./targets/registry.ts")).registryAnswers,
  ),
  "gzip-index": share(6_000, async () => (await gzip()).gzipIndex),
  "layer-pass": share(8_000, async () => (await index()).layerPass),
  "tar-image": share(8_000, async () => (await tar()).tarImage),
  "tar-reader": share(35_000, async () => (await tar()).tarReader),
  "layer-index": share(30_000, async () => (await index()).layerIndex),
  "index-spans": share(30_000, async () => (await index()).indexSpans),
  "file-table": share(10_000, async () => (await index()).fileTable),
  "erofs-reader": share(9_000, async () => (await import("./targets/erofs.ts")).erofsReader),
  "gzip-span": share(40_000, async () => (await gzip()).gzipSpan),
  "docker-config": share(3_000, async () => (await documents()).dockerConfig),
  "sealed-index": share(30_000, async () => (await index()).sealedIndex),
  "registry-document": share(30_000, async () => (await documents()).registryDocument),
  "containerd-document": share(40_000, async () => (await documents()).containerdDocument),
  "redis-manifest": share(80_000, async () => (await documents()).redisManifest),
  config: share(30_000, async () => (await text()).config),
  "hosts-file": share(40_000, async () => (await text()).hostsFile),
  filter: share(15_000, async () => (await text()).filter),
  "fuse-request": share(150_000, async () => (await import("./targets/fuse.ts")).fuseRequest),
  "tar-path": share(50_000, async () => (await tar()).tarPath),
  reference: share(60_000, async () => (await text()).reference),
  digest: share(50_000, async () => (await text()).digestText),
  challenge: share(80_000, async () => (await text()).challenge),
  "mount-table": share(70_000, async () => (await text()).mountTable),
  "keeper-message": share(60_000, async () => (await import("./targets/keeper.ts")).keeperMessage),
  "span-map": share(80_000, async () => (await documents()).spanMap),
};

function share(executions: number, load: () => Promise<FuzzTarget>): TargetEntry {
  return { executions, load };
}
