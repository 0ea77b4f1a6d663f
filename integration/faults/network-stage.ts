/** A node whose registry and content cache are reached through proxies that make faults. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { Agent, request } from "undici";
import { clip, type ClipSettings } from "../harness/clip.ts";
import { makeBase } from "../harness/fixtures.ts";
import { makeImage, makeLayer, pushImage, type Image, type ImageLayer } from "../harness/image.ts";
import { startRegistryServer } from "../harness/registry.ts";
import { Sandbox } from "../harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "../harness/stage.ts";
import { tarOf, type TarMember } from "../harness/tar-writer.ts";
import { certificates, type Certificate } from "./certificates.ts";
import { ContainerReader } from "./container-reader.ts";
import { FaultProxy, type Filter } from "./fault-proxy.ts";
import { HostName } from "./host-name.ts";

/** Time limits of clip towards registries: short, but longer than a busy machine dawdles. */
const limits = {
  timeoutMs: 1000,
  idleTimeoutMs: 1000,
  bytesPerSecondMin: 10_000,
  retries: 1,
} as const;

const fileBytes = 96 * 1024;
/** Of so many neighbours one is read, so that they share no spans. */
const spacing = 4;

/** A file with known contents. */
export interface KnownFile {
  /** Its path in the container. */
  name: string;
  /** MD5, since that is what a small container has. */
  sum: string;
}

/** A layer of files, half of their bytes compressible. */
export interface DataLayer {
  layer: ImageLayer;
  /** Files that share no spans. */
  files: KnownFile[];
}

/** Gets for blobs: what readers wait for. */
export const blobs: Filter = ({ method, url }) => method === "GET" && url.includes("/blobs/");

/** A node, and what is around it. */
export class NetworkStage {
  readonly sandbox: Sandbox;
  readonly registry: FaultProxy;
  readonly hostName: HostName;
  readonly dockerConfig: string;
  readonly authorityFile: string;
  /** Where the registry keeps its data. */
  readonly registryData: string;
  /** Port of the registry itself, without faults. */
  readonly registryPort: number;
  #stage: Stage | undefined;

  private constructor(
    parts: Pick<NetworkStage, "sandbox" | "registry" | "hostName" | "registryPort">,
  ) {
    this.sandbox = parts.sandbox;
    this.registry = parts.registry;
    this.hostName = parts.hostName;
    this.registryPort = parts.registryPort;
    this.dockerConfig = parts.sandbox.path("docker.json");
    this.authorityFile = parts.sandbox.path("authority.pem");
    this.registryData = parts.sandbox.path("registry", "data");
  }

  /** Starts the registry. */
  static async open(): Promise<NetworkStage> {
    const sandbox = await Sandbox.create();
    const { port } = await startRegistryServer(sandbox, "registry", "127.0.0.1");
    const registry = await FaultProxy.open(sandbox, {
      target: port,
      certificate: certificates.first,
      filter: blobs,
    });
    const hostName = HostName.add(sandbox);
    const stage = new NetworkStage({ sandbox, registry, hostName, registryPort: port });
    await stage.trust(certificates.first);
    return stage;
  }

  /** Writes whom clip is to trust. */
  trust({ cert }: Certificate): Promise<void> {
    return writeFile(this.authorityFile, cert);
  }

  /** The registry as it stands in the names of images. */
  get host(): string {
    return `${this.hostName.name}:${this.registry.port}`;
  }

  get node(): Stage {
    assert.ok(this.#stage !== undefined, "the node has been started");
    return this.#stage;
  }

  /** Starts containerd and clip. */
  async startNode(settings: ClipSettings = {}): Promise<void> {
    const hosts = await this.sandbox.subdirectory("hosts", this.host);
    const file = `server = "https://${this.host}"\nca = "${this.authorityFile}"\n`;
    await writeFile(path.join(hosts, "hosts.toml"), file);
    this.#stage = await startStage(this.sandbox, {
      generation: "2",
      mode: "auto",
      registry: { host: this.host },
      settings: {
        ...settings,
        layer: { span_bytes: 65_536 },
        registry: {
          host: [{ name: this.host, ca_file: this.authorityFile }],
          docker_config: this.dockerConfig,
          timeout_ms: limits.timeoutMs,
          idle_timeout_ms: limits.idleTimeoutMs,
          bytes_per_second_min: limits.bytesPerSecondMin,
          retries: limits.retries,
        },
      },
    });
  }

  /** Makes a layer of files below `/name`. */
  async makeDataLayer(name: string, count: number): Promise<DataLayer> {
    const contents = Array.from({ length: count * spacing }, () => mixedBytes());
    const members = contents.map((data, at): TarMember => ({ name: `${name}/${at}`, data }));
    const tarFile = path.join(await this.sandbox.subdirectory("images"), `${name}.tar`);
    await writeFile(tarFile, tarOf([{ name: `${name}/`, type: "directory" }, ...members]));
    const sumOf = (data: Buffer) => createHash("md5").update(data).digest("hex");
    const files = contents.map((data, at) => ({ name: `/${name}/${at}`, sum: sumOf(data) }));
    return {
      layer: await makeLayer(tarFile, "pigz"),
      files: files.filter((_, at) => at % spacing === 0),
    };
  }

  /** Pushes an image of a base and these layers. */
  async push(repository: string, layers: readonly DataLayer[]): Promise<Image> {
    const directory = this.sandbox.path("base");
    await mkdir(directory, { recursive: true });
    const base = await makeBase(directory);
    const image = makeImage([...base.layers, ...layers.map(({ layer }) => layer)]);
    await pushImage(image, `127.0.0.1:${this.registryPort}`, repository);
    return image;
  }

  /** Publishes the indexes of an image; after the node has been started. */
  async publishIndexes(repository: string): Promise<void> {
    const reference = `127.0.0.1:${this.registryPort}/${repository}:latest`;
    const config = ["--config", this.node.clip.configFile];
    await clip(["index", "create", reference, "--push", ...config]);
  }

  /** Pulls an image as a client does. */
  async pull(repository: string): Promise<string> {
    const reference = `${this.host}/${repository}:latest`;
    const hosts = ["--hosts-dir", this.sandbox.path("hosts")];
    await this.node.containerd.ctr(["image", "pull", ...hosts, "--snapshotter", "clip", reference]);
    return reference;
  }

  /** Starts a container of an image that has been pulled, and a reader in it. */
  async startReader(reference: string): Promise<ContainerReader> {
    const container = `faults-${process.pid}-${randomBytes(3).toString("hex")}`;
    const { containerd } = this.node;
    const start = ["run", "-d", "--snapshotter", "clip", reference, container];
    await containerd.ctr([...start, "sleep", "1000000"]);
    return ContainerReader.start(containerd, container);
  }

  /** The sum of all samples of the metrics page whose line begins so. */
  async metric(beginning: RegExp): Promise<number> {
    const socketPath = path.join(this.node.clip.state, "metrics.sock");
    const dispatcher = new Agent({ connect: { socketPath } });
    try {
      const { body } = await request("http://clip/metrics", { dispatcher });
      return (await body.text())
        .split("\n")
        .filter((line) => beginning.test(line))
        .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
    } finally {
      await dispatcher.close();
    }
  }

  /** Lets everything go. */
  async close(): Promise<void> {
    await this.registry.recover();
    if (this.#stage !== undefined) await assertNothingLeft(this.#stage);
    await this.sandbox.close();
  }
}

/** The right bytes, or the reason why not. */
export async function assertReads(reader: ContainerReader, file: KnownFile): Promise<void> {
  assert.deepEqual(await reader.read(file.name), { sum: file.sum }, file.name);
}

function mixedBytes(): Buffer {
  const random = randomBytes(fileBytes >> 1);
  const line = `${random.subarray(0, 24).toString("hex")} text that a compressor likes\n`;
  return Buffer.concat([random, Buffer.alloc(fileBytes - random.length, line)]);
}
