/**
 * What a cluster gains from its content cache: ten nodes start one image, the first without an index.
 *
 *     make -s bench-cluster          tables
 *     JSON=1 make -s bench-cluster   {"cluster": {…}}
 *
 * Nodes are network namespaces on this machine, each with a containerd and a clip of its own. They
 * take their turns. The content cache is an S3 server. Needs root.
 */
import { open, readdir, stat } from "node:fs/promises";
import path from "node:path";
import {
  Cluster,
  compressedBytes,
  startContainer,
  statusOf,
  stopNode,
  uncompressedBytes,
  untilComplete,
  untilStored,
  type ClusterNode,
  type Link,
  type Start,
} from "../integration/cluster/cluster.ts";
import { run } from "../integration/harness/command.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import { Sandbox } from "../integration/harness/sandbox.ts";
import { startStage } from "../integration/harness/stage.ts";
import type { NodeStatus } from "../src/daemon/status.ts";
import { median, megabytes, printTable, seconds } from "./table.ts";

const MiB = 1024 * 1024;
const NODES = 10;
const ROUNDS = 3;
/** containerd decodes gzip itself, or has igzip do it where that is installed. */
const CONTENDERS = ["clip", "overlayfs", "overlayfs with igzip"] as const;
const FAR: Link = { megabits: 100, delayMs: 20 };
const NEAR: Link = { delayMs: 1 };
const LOCAL: Link = { delayMs: 0 };
/** Of the second node only: the later ones would but do the same again. */
const COMPLETED = { layer: { background_fill: true } };

const RANGE_BYTES = 5 * 1024;
const RANGE_READS = 120;
/** Distance of these reads, so that none finds what another has fetched. */
const RANGE_DISTANCE = 4 * MiB;

interface Figures {
  registryBytesRatio: number;
  nodeBBytesRatio: number;
  nodeBStartRatio: number;
  nodeAVsOverlayfs: number;
  nodeAVsOverlayfsIgzip: number;
  rangeReadMsP50: number;
  warmRegistryRequests: number;
  warmCacheRequests: number;
  hitRatio: number;
}

/** What is promised of each. */
const LIMITS: Readonly<Record<keyof Figures, string>> = {
  registryBytesRatio: "at most 1.1",
  nodeBBytesRatio: "at most 0.06",
  nodeBStartRatio: "at most 0.2",
  nodeAVsOverlayfs: "at most 0.6",
  nodeAVsOverlayfsIgzip: "none: igzip does not come with containerd",
  rangeReadMsP50: "at most 8",
  warmRegistryRequests: "0",
  warmCacheRequests: "0",
  hitRatio: "at least 0.9",
};

/** What one node of the ten did until its container's first output. */
interface NodeReport {
  name: string;
  start: Start;
  registryBytes: number;
  cacheBytes: number;
  /** All that came over its link. */
  linkBytes: number;
}

/** Milliseconds from the start of a pull to the first output, on a local link. */
type Rounds = Record<(typeof CONTENDERS)[number], number[]>;

const sandbox = await Sandbox.create();
try {
  await main();
} finally {
  await sandbox.close();
}

async function main(): Promise<void> {
  const image = await debianImage();
  const cluster = await Cluster.start(sandbox, image);
  const rounds = await compareWithOverlayfs(cluster);
  const reports: NodeReport[] = [];
  const hits = { near: 0, registry: 0 };
  let registryBytes = 0;
  let warm = { registry: 0, cache: 0 };
  let rangeReads: number[] = [];
  for (let number = 0; number < NODES; number++) {
    const name = String.fromCodePoint(97 + number);
    const node = await cluster.addNode(
      name,
      number < 2 ? FAR : LOCAL,
      number === 1 ? COMPLETED : {},
    );
    reports.push(await measureStart(cluster, node));
    // What follows is not timed: the link need not hold it up.
    await cluster.setLink(node, LOCAL);
    if (number === 0) {
      await untilStored(node);
      warm = await countWarmRequests(cluster, node);
    }
    if (number === 1) await untilComplete(node);
    countHits(hits, await statusOf(node));
    registryBytes += cluster.traffic(node).registry.received;
    if (number === 2) rangeReads = await readRanges(cluster, node);
    await stopNode(node);
  }
  const [first, second] = reports;
  if (first === undefined || second === undefined) throw new Error("there are two nodes at least");
  report(reports, rounds, {
    registryBytesRatio: registryBytes / compressedBytes(image),
    nodeBBytesRatio: second.linkBytes / uncompressedBytes(image),
    nodeBStartRatio: second.start.firstOutput / first.start.firstOutput,
    nodeAVsOverlayfs: median(rounds.clip) / median(rounds.overlayfs),
    nodeAVsOverlayfsIgzip: median(rounds.clip) / median(rounds["overlayfs with igzip"]),
    rangeReadMsP50: median(rangeReads),
    warmRegistryRequests: warm.registry,
    warmCacheRequests: warm.cache,
    hitRatio: hits.near / (hits.near + hits.registry),
  });
}

/** Fresh nodes in turn, without a network between them, the registry and an empty cache. */
async function compareWithOverlayfs(cluster: Cluster): Promise<Rounds> {
  const rounds: Rounds = { clip: [], overlayfs: [], "overlayfs with igzip": [] };
  for (let round = 0; round < ROUNDS; round++) {
    for (const contender of CONTENDERS) {
      const name = `${contender.replaceAll(" ", "-")}-${round}`;
      const stage = await startStage(sandbox, {
        ...{ generation: "2", mode: "auto", name, ownGzip: contender === "overlayfs" },
        registry: { host: cluster.localRegistry },
        settings: cluster.localCacheSettings(`${name}/`),
      });
      // What earlier rounds have left to be written is not this one's.
      await run("sync", []);
      const snapshotter = contender === "clip" ? "clip" : "overlayfs";
      const { firstOutput } = await startContainer(stage, cluster.localReference, snapshotter);
      rounds[contender].push(firstOutput);
      await stopNode({ stage });
    }
  }
  return rounds;
}

async function measureStart(cluster: Cluster, node: ClusterNode): Promise<NodeReport> {
  await run("sync", []);
  const before = await node.link.receivedBytes();
  const start = await cluster.start(node);
  const linkBytes = (await node.link.receivedBytes()) - before;
  const { registry, cache } = cluster.traffic(node);
  return {
    ...{ name: node.name, start, linkBytes },
    registryBytes: registry.received,
    cacheBytes: cache.received,
  };
}

/** Requests of a second start, but for those of containerd itself. */
async function countWarmRequests(
  cluster: Cluster,
  node: ClusterNode,
): Promise<{ registry: number; cache: number }> {
  const { registry, cache } = cluster.traffic(node);
  const before = { registry: registry.requests.length, cache: cache.requests.length };
  await cluster.start(node);
  const ofClip = registry.requests
    .slice(before.registry)
    .filter(({ userAgent }) => !userAgent.startsWith("containerd/"));
  return { registry: ofClip.length, cache: cache.requests.length - before.cache };
}

/** Reads and spans by where they came from. */
function countHits(hits: { near: number; registry: number }, { tiers }: NodeStatus): void {
  for (const [name, tier] of Object.entries(tiers)) {
    if (name === "registry") hits.registry += tier.hits;
    else hits.near += tier.hits;
  }
}

/** Milliseconds of small reads in places of large files that no one has read. */
async function readRanges(cluster: Cluster, node: ClusterNode): Promise<number[]> {
  const { containerd } = node.stage;
  const mountpoint = await sandbox.subdirectory("image");
  const flag = ["--snapshotter", "clip"];
  await containerd.ctr(["image", "mount", ...flag, cluster.reference, mountpoint]);
  try {
    await cluster.setLink(node, NEAR);
    const before = await statusOf(node);
    const times: number[] = [];
    for (const { file, offset } of await rangesBelow(mountpoint)) {
      times.push(await timeRead(file, offset));
    }
    const after = await statusOf(node);
    const missed = after.reads.handed - before.reads.handed;
    // A few may find what was read ahead; the median is not theirs.
    if (missed < 0.9 * times.length) throw new Error(`only ${missed} reads missed the disk`);
    return times;
  } finally {
    await containerd.ctr(["image", "unmount", ...flag, mountpoint]);
    await containerd.ctr(["snapshot", "--snapshotter", "clip", "rm", mountpoint]);
  }
}

/** Places that are far from each other, in no order. */
async function rangesBelow(directory: string): Promise<{ file: string; offset: number }[]> {
  const ranges: { file: string; offset: number }[] = [];
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const file = path.join(entry.parentPath, entry.name);
    const { size } = await stat(file);
    for (let offset = 2 * MiB; offset + MiB < size; offset += RANGE_DISTANCE) {
      ranges.push({ file, offset });
    }
  }
  // A step that has no divisor in common with the number of ranges visits each of them once.
  let step = Math.floor(ranges.length * 0.618);
  while (commonDivisor(step, ranges.length) > 1) step++;
  return ranges
    .map((_, index) => ranges[(index * step) % ranges.length])
    .filter((range) => range !== undefined)
    .slice(0, RANGE_READS);
}

function commonDivisor(a: number, b: number): number {
  return b === 0 ? a : commonDivisor(b, a % b);
}

async function timeRead(file: string, offset: number): Promise<number> {
  const handle = await open(file, "r");
  try {
    const bytes = Buffer.alloc(RANGE_BYTES);
    const started = performance.now();
    const { bytesRead } = await handle.read(bytes, 0, RANGE_BYTES, offset);
    if (bytesRead < RANGE_BYTES) throw new Error(`${file} ends at ${offset + bytesRead}`);
    return performance.now() - started;
  } finally {
    await handle.close();
  }
}

function report(reports: readonly NodeReport[], rounds: Rounds, figures: Figures): void {
  if (process.env["JSON"] === "1") {
    process.stdout.write(`${JSON.stringify({ cluster: figures })}\n`);
    return;
  }
  printTable(
    [
      "node",
      "link",
      "pulled",
      "first output",
      "from the registry",
      "from the cache",
      "over the link",
    ],
    reports.map(({ name, start, registryBytes, cacheBytes, linkBytes }, index) => [
      ...[name, index < 2 ? "100 Mbit/s, 20 ms" : "local"],
      ...[seconds(start.pulled), seconds(start.firstOutput)],
      ...[registryBytes, cacheBytes, linkBytes].map(megabytes),
    ]),
  );
  process.stdout.write("\nA first node on a local link\n");
  for (const contender of CONTENDERS) {
    process.stdout.write(`${contender}: ${rounds[contender].map(seconds).join(", ")}\n`);
  }
  process.stdout.write("\n");
  printTable(
    ["figure", "value", "limit"],
    Object.entries(figures).map(([name, value]: [string, number]) => [
      name,
      value.toFixed(Number.isInteger(value) ? 0 : 3),
      LIMITS[name as keyof Figures],
    ]),
  );
}
