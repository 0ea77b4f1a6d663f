/** Several nodes on one machine, one registry, one content cache. */
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { askForStatus } from "../../src/cli/status.ts";
import type { NodeStatus } from "../../src/daemon/status.ts";
import { s3Credentials, startS3 } from "../content-cache-servers.ts";
import type { ClipSettings } from "../harness/clip.ts";
import { pushImage, type Image } from "../harness/image.ts";
import { startRegistryServer } from "../harness/registry.ts";
import type { Sandbox } from "../harness/sandbox.ts";
import { startStage, type Stage } from "../harness/stage.ts";
import { ClusterNetwork, type NodeLink } from "./network.ts";
import { Peer, type Traffic } from "./peer.ts";

const REPOSITORY = "cluster/image";

/** What a container does to show that it runs. */
const COMMAND = ["cat", "/etc/os-release"];

/** How a link is limited. */
export interface Link {
  /** In each direction; undefined: as fast as it goes. */
  megabits?: number | undefined;
  /** Added to each round trip. */
  delayMs: number;
}

/** How long a start took, in milliseconds from the start of the pull. */
export interface Start {
  pulled: number;
  firstOutput: number;
  output: string;
}

/** A node that is running. */
export interface ClusterNode {
  name: string;
  stage: Stage;
  link: NodeLink;
}

/** The servers, and the nodes that are added. */
export class Cluster {
  /** The image, as nodes name it. */
  readonly reference: string;
  /** The registry as it is reached without a network between, and the image there. */
  readonly localRegistry: string;
  readonly localReference: string;
  readonly registry: Peer;
  readonly cache: Peer;
  readonly #sandbox: Sandbox;
  readonly #network: ClusterNetwork;
  readonly #cachePort: number;

  private constructor(
    sandbox: Sandbox,
    parts: {
      network: ClusterNetwork;
      registry: Peer;
      registryPort: number;
      cache: Peer;
      cachePort: number;
    },
  ) {
    this.#sandbox = sandbox;
    this.#network = parts.network;
    this.#cachePort = parts.cachePort;
    this.registry = parts.registry;
    this.cache = parts.cache;
    this.localRegistry = `127.0.0.1:${parts.registryPort}`;
    this.localReference = `${this.localRegistry}/${REPOSITORY}:latest`;
    this.reference = `${parts.registry.host}/${REPOSITORY}:latest`;
  }

  /** Starts the servers and pushes the image. */
  static async start(sandbox: Sandbox, image: Image): Promise<Cluster> {
    const network = await ClusterNetwork.create(sandbox);
    const address = network.gateway;
    const { port } = await startRegistryServer(sandbox, "registry", "127.0.0.1");
    const s3 = await startS3(await sandbox.subdirectory("s3"));
    sandbox.onClose("versitygw", () => s3.service.stop());
    await pushImage(image, `127.0.0.1:${port}`, REPOSITORY);
    const peer = (target: number): Promise<Peer> =>
      Peer.open(sandbox, { address, target: { host: "127.0.0.1", port: target } });
    await writeFile(sandbox.path("secret"), s3Credentials.secretAccessKey);
    await writeFile(sandbox.path("keys"), `${"k".repeat(32)}\n`);
    return new Cluster(sandbox, {
      network,
      registry: await peer(port),
      registryPort: port,
      cache: await peer(s3.port),
      cachePort: s3.port,
    });
  }

  /** Starts a node with nothing on its disk. */
  async addNode(
    name: string,
    { megabits, delayMs }: Link,
    settings: ClipSettings = {},
  ): Promise<ClusterNode> {
    const link = await this.#network.addNode();
    const stage = await startStage(this.#sandbox, {
      ...{ generation: "2", mode: "auto", name },
      networkNamespace: link.namespace,
      registry: this.registry,
      settings: {
        ...settings,
        ...this.#cacheSettings(this.cache.host, ""),
      },
    });
    const node = { name, stage, link };
    await this.setLink(node, { megabits, delayMs });
    return node;
  }

  /** What a node that is in no namespace is told of the content cache; `prefix` makes it its own. */
  localCacheSettings(prefix: string): ClipSettings {
    return this.#cacheSettings(`127.0.0.1:${this.#cachePort}`, prefix);
  }

  /** Limits the link of a node. */
  async setLink({ link }: ClusterNode, { megabits, delayMs }: Link): Promise<void> {
    await link.setRate(megabits);
    for (const peer of [this.registry, this.cache]) peer.setDelay(link.address, delayMs);
  }

  /** What passed between a node and the servers since the last reset. */
  traffic({ link }: ClusterNode): { registry: Traffic; cache: Traffic } {
    const { address } = link;
    return { registry: this.registry.traffic(address), cache: this.cache.traffic(address) };
  }

  /** Forgets what passed. */
  resetTraffic({ link }: ClusterNode): void {
    for (const peer of [this.registry, this.cache]) peer.reset(link.address);
  }

  /** Pulls the image on a node and runs a container of it. */
  start(node: ClusterNode): Promise<Start> {
    return startContainer(node.stage, this.reference, "clip");
  }

  #cacheSettings(endpoint: string, prefix: string): ClipSettings {
    const { accessKeyId } = s3Credentials;
    const cache = {
      ...{ kind: "s3", bucket: "clip", prefix, endpoint: `http://${endpoint}`, path_style: true },
      ...{ access_key_id: accessKeyId, secret_access_key_file: this.#sandbox.path("secret") },
    };
    return {
      "": { content_cache: [cache] },
      sharing: { index_key_file: this.#sandbox.path("keys") },
    };
  }
}

/** Pulls an image and runs a container of it that prints /etc/os-release. */
export async function startContainer(
  { containerd }: Stage,
  reference: string,
  snapshotter: "clip" | "overlayfs",
): Promise<Start> {
  const snapshotterFlag = ["--snapshotter", snapshotter];
  const begun = performance.now();
  await containerd.ctr(["image", "pull", "--plain-http", ...snapshotterFlag, reference], {
    timeoutMs: 300_000,
  });
  const pulled = performance.now() - begun;
  let firstOutput = 0;
  const output = await containerd.ctr(
    ["run", "--rm", ...snapshotterFlag, reference, "c", ...COMMAND],
    {
      onFirstOutput: () => {
        firstOutput = performance.now() - begun;
      },
    },
  );
  return { pulled, firstOutput, output };
}

/** What the daemon of a node says. */
export function statusOf({ stage }: Pick<ClusterNode, "stage">): Promise<NodeStatus> {
  return askForStatus(path.join(stage.clip.state, "metrics.sock"));
}

/** Waits until a node has stored in the content cache what it has to. */
export function untilStored(node: ClusterNode): Promise<void> {
  return until(node, "stored its layers", ({ queues }) => queues.stores === 0);
}

/** Waits until all layers of a node are on its disk. */
export function untilComplete(node: ClusterNode): Promise<void> {
  return until(node, "completed its layers", ({ layers }) =>
    layers.every(({ state }) => state === "complete"),
  );
}

async function until(
  node: ClusterNode,
  what: string,
  holds: (status: NodeStatus) => boolean,
): Promise<void> {
  const deadline = Date.now() + 120_000;
  while (!holds(await statusOf(node))) {
    if (Date.now() > deadline) throw new Error(`node ${node.name} has not ${what} in two minutes`);
    await sleep(200);
  }
}

/** Bytes of an image's layers as the registry has them. */
export function compressedBytes({ layers }: Image): number {
  return layers.reduce((sum, { size }) => sum + size, 0);
}

/** Bytes of an image's layers unpacked. */
export function uncompressedBytes({ layers }: Image): number {
  return layers.reduce((sum, { uncompressedSize }) => sum + uncompressedSize, 0);
}

/** Ends a node. */
export async function stopNode({ stage }: Pick<ClusterNode, "stage">): Promise<void> {
  await stage.containerd.close();
  await stage.clip.stop();
}
