/**
 * What reading through a mount costs: registry bytes of a container that reads one file, requests
 * and times of programs that read metadata and contents, beside the same on an unpacked tree.
 *
 *     make -s bench-read          a table
 *     JSON=1 make -s bench-read   {"read": {"lazyBytesRatio", "metadataRequests", "findColdRatio",
 *                                           "warmRatio"}}
 *
 * Needs root, for mounts and for dropping the kernel's caches.
 */
import { writeFile } from "node:fs/promises";
import { clip } from "../integration/harness/clip.ts";
import { run } from "../integration/harness/command.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import { makeImage, pushImage, type Image } from "../integration/harness/image.ts";
import { startRegistry, type TestRegistry } from "../integration/harness/registry.ts";
import { Sandbox } from "../integration/harness/sandbox.ts";
import { startStage } from "../integration/harness/stage.ts";
import { openNode, type LayerNode } from "../integration/layer-node.ts";
import { parseDigest } from "../src/base/digest.ts";
import { median, printTable, seconds } from "./table.ts";

const ROUNDS = 7;

interface Figures {
  lazyBytesRatio: number;
  metadataRequests: number;
  findColdRatio: number;
  warmRatio: number;
}

/** Medians in milliseconds of one program on both trees. */
interface Compared {
  mount: number;
  ext4: number;
}

const sandbox = await Sandbox.create();
try {
  await main();
} finally {
  await sandbox.close();
}

async function main(): Promise<void> {
  const image = await debianImage();
  const registry = await startRegistry(sandbox);
  const lazyBytesRatio = await measureLazyBytes(registry, image);
  const node = await openNode(await sandbox.subdirectory("node"));
  try {
    const mount = await mountBase(registry, node, image);
    const ext4 = await unpackBase(image);
    const metadataRequests = await countMetadataRequests(node, mount);
    const find = await compare(mount, ext4, findEverything, dropCaches);
    const tar = await compare(mount, ext4, readEverything);
    report(find, tar, {
      lazyBytesRatio,
      metadataRequests,
      findColdRatio: find.mount / find.ext4,
      warmRatio: tar.mount / tar.ext4,
    });
  } finally {
    await node.close();
  }
}

/** All that the registry sends for a pull and a container that prints /etc/os-release. */
async function measureLazyBytes(registry: TestRegistry, image: Image): Promise<number> {
  const reference = await pushImage(image, registry.host, "bench/image");
  await clip(["index", "create", reference, "--push", "--plain-http"], { timeoutMs: 600_000 });
  const stage = await startStage(sandbox, { generation: "2", mode: "auto", registry });
  registry.reset();
  await stage.containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", reference]);
  const command = ["cat", "/etc/os-release"];
  await stage.containerd.ctr(["run", "--rm", "--snapshotter", "clip", reference, "c", ...command]);
  const sent = registry.requests.reduce((sum, { bytes }) => sum + bytes, 0);
  await stage.containerd.close();
  await stage.clip.stop();
  return sent / image.layers.reduce((sum, { size }) => sum + size, 0);
}

/** Mounts the bottom layer, a Debian root file system, lazily; returns where. */
async function mountBase(registry: TestRegistry, node: LayerNode, image: Image): Promise<string> {
  const [layer] = image.layers;
  if (layer === undefined) throw new Error("the image has layers");
  const base = makeImage([layer]);
  const reference = await pushImage(base, registry.host, "bench/base");
  await clip(["index", "create", reference, "--push", "--plain-http"]);
  const number = await node.layers.ensure({
    layerDigest: parseDigest(layer.digest),
    diffId: parseDigest(layer.diffId),
    compressedSize: layer.size,
    mediaType: layer.mediaType,
    manifestDigest: parseDigest(base.digest),
    repositories: [{ host: registry.host, name: "bench/base" }],
  });
  return (await node.layers.mount(number)).path;
}

/** The same layer, unpacked on the same disk. */
async function unpackBase(image: Image): Promise<string> {
  const directory = await sandbox.subdirectory("unpacked");
  await run("tar", ["-C", directory, "-xpf", image.layers[0]?.tarFile ?? ""]);
  return directory;
}

async function countMetadataRequests(node: LayerNode, mount: string): Promise<number> {
  const total = (): number =>
    Object.values(node.session.requestCounts()).reduce((sum, count) => sum + count, 0);
  const before = total();
  await findEverything(mount);
  return total() - before;
}

/** Interleaved rounds on both trees; the first is not counted. */
async function compare(
  mount: string,
  ext4: string,
  work: (directory: string) => Promise<unknown>,
  prepare?: () => Promise<void>,
): Promise<Compared> {
  const times = { [mount]: [] as number[], [ext4]: [] as number[] };
  for (let round = 0; round <= ROUNDS; round++) {
    for (const directory of round % 2 === 0 ? [mount, ext4] : [ext4, mount]) {
      await prepare?.();
      const started = performance.now();
      await work(directory);
      if (round > 0) times[directory]?.push(performance.now() - started);
    }
  }
  return { mount: median(times[mount] ?? []), ext4: median(times[ext4] ?? []) };
}

function findEverything(directory: string): Promise<string> {
  const format = "%p %y %m %U %G %s %n %T@ %l\\n";
  return run("sh", ["-c", 'find "$1" -printf "$2" > /dev/null', "sh", directory, format]);
}

function readEverything(directory: string): Promise<string> {
  // GNU tar does not read what it would write to /dev/null itself.
  return run("sh", ["-c", 'tar -C "$1" -cf - . | cat > /dev/null', "sh", directory]);
}

/** Empties the kernel's caches, and brings back the program itself. */
async function dropCaches(): Promise<void> {
  await run("sync", []);
  await writeFile("/proc/sys/vm/drop_caches", "3");
  await run("sh", ["-c", "find --version > /dev/null"]);
}

function report(find: Compared, tar: Compared, figures: Figures): void {
  if (process.env["JSON"] === "1") {
    process.stdout.write(`${JSON.stringify({ read: figures })}\n`);
    return;
  }
  const row = (name: string, { mount, ext4 }: Compared, ratio: number): string[] => [
    name,
    seconds(mount),
    seconds(ext4),
    ratio.toFixed(2),
  ];
  printTable(
    ["a Debian root file system", "clip", "ext4", "ratio"],
    [
      row("find -printf, caches dropped", find, figures.findColdRatio),
      row("tar -c, warm", tar, figures.warmRatio),
    ],
  );
  process.stdout.write(
    `\nFUSE requests of a find: ${figures.metadataRequests}\n` +
      `Registry bytes of a container that prints /etc/os-release: ` +
      `${(100 * figures.lazyBytesRatio).toFixed(2)} % of the compressed layers\n` +
      `Medians of ${ROUNDS} interleaved rounds.\n`,
  );
}
