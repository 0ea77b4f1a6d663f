/**
 * The demo: a registry, containerd and clip come up on this machine, an image of some hundred
 * megabytes is pushed and indexed, and a container is started from it in several ways, each on a
 * fresh node. Ends with a table, and leaves nothing behind.
 */
import { clip } from "../integration/harness/clip.ts";
import { run } from "../integration/harness/command.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import { pushImage, type Image } from "../integration/harness/image.ts";
import { startRegistry, type TestRegistry } from "../integration/harness/registry.ts";
import { Sandbox } from "../integration/harness/sandbox.ts";
import { startStage, type Stage } from "../integration/harness/stage.ts";
import { megabytes, printTable, seconds } from "./table.ts";

/** One way to start the container. */
interface Run {
  client: "ctr" | "nerdctl";
  snapshotter: "overlayfs" | "clip";
  /** Repository of the image; both have the same blobs. */
  repository: "demo/indexed" | "demo/plain";
}

/** What it took. */
interface Measured extends Run {
  /** Milliseconds from the start of the pull. */
  pulled: number;
  firstOutput: number;
  /** Bytes of layers that the registry sent until then, and that the node keeps. */
  registryBytes: number;
  diskBytes: number;
}

const RUNS: readonly Run[] = [
  { client: "ctr", snapshotter: "overlayfs", repository: "demo/indexed" },
  { client: "ctr", snapshotter: "clip", repository: "demo/indexed" },
  { client: "nerdctl", snapshotter: "overlayfs", repository: "demo/indexed" },
  { client: "nerdctl", snapshotter: "clip", repository: "demo/indexed" },
  { client: "ctr", snapshotter: "clip", repository: "demo/plain" },
];

const COMMAND = ["python3", "-c", "import platform; print('Python', platform.python_version())"];

const sandbox = await Sandbox.create();
try {
  await main();
} finally {
  await sandbox.close();
}
say("Registry, containerd, clip, mounts and files are gone again.");

async function main(): Promise<void> {
  say("An image is built from Debian packages (kept in .tools/cache for the next time).");
  const image = await debianImage();
  const size = sizeOf(image);
  const uncompressed = image.layers.reduce((sum, layer) => sum + layer.uncompressedSize, 0);
  say(
    `It has ${image.layers.length} layers, ${megabytes(size)} compressed, ` +
      `${megabytes(uncompressed)} unpacked.`,
  );

  const registry = await startRegistry(sandbox);
  say(`A registry runs on ${registry.host}.`);
  const indexed = await pushImage(image, registry.host, "demo/indexed");
  await pushImage(image, registry.host, "demo/plain");

  const index = ["index", "create", indexed, "--push", "--plain-http"];
  show("clip", index);
  const started = performance.now();
  await clip(index, { timeoutMs: 600_000 });
  say(`Indexed in ${seconds(performance.now() - started)}; the image itself is as it was.`);

  const results: Measured[] = [];
  for (const [index, way] of RUNS.entries()) {
    const without = way.repository === "demo/plain" ? ", an image without an index" : "";
    say(`\n${way.client} with ${way.snapshotter}${without}, on a fresh node:`);
    results.push(await measure(registry, way, `node-${index}`));
  }
  report(results, size);
}

/** Starts a node, pulls the image, runs the command in a container. */
async function measure(registry: TestRegistry, way: Run, name: string): Promise<Measured> {
  const stage = await startStage(sandbox, { generation: "2", mode: "auto", registry, name });
  const reference = `${registry.host}/${way.repository}:latest`;
  const { pull, start } = commandsOf(way, reference);
  registry.reset();
  const diskBefore = await diskBytes(stage);
  const begun = performance.now();
  show(way.client, pull);
  await stage.containerd[way.client](pull, { timeoutMs: 600_000 });
  const pulled = performance.now() - begun;
  let firstOutput = 0;
  show(way.client, start);
  const output = await stage.containerd[way.client](start, {
    timeoutMs: 600_000,
    onFirstOutput: () => {
      firstOutput = performance.now() - begun;
    },
  });
  say(`${output}\nafter ${seconds(firstOutput)}`);
  const measured = {
    ...way,
    ...{ pulled, firstOutput },
    registryBytes: registry.blobBytes(way.repository),
    diskBytes: (await diskBytes(stage)) - diskBefore,
  };
  await stage.containerd.close();
  await stage.clip.stop();
  return measured;
}

function commandsOf(way: Run, reference: string): { pull: string[]; start: string[] } {
  const snapshotter = ["--snapshotter", way.snapshotter];
  return way.client === "ctr"
    ? {
        pull: ["image", "pull", "--plain-http", ...snapshotter, reference],
        start: ["run", "--rm", ...snapshotter, reference, "demo", ...COMMAND],
      }
    : {
        pull: [...snapshotter, "pull", "--quiet", reference],
        start: [...snapshotter, "run", "--rm", "--net", "none", reference, ...COMMAND],
      };
}

/** Allocated bytes below the directories of a node, without what is mounted there. */
async function diskBytes({ containerd, clip }: Stage): Promise<number> {
  const directories = [containerd.directory, clip.root];
  const table = await run("du", ["-sx", "--block-size=1", ...directories]);
  return table
    .split("\n")
    .map((line) => Number.parseInt(line, 10))
    .reduce((sum, bytes) => sum + bytes, 0);
}

function report(results: readonly Measured[], size: number): void {
  say("");
  printTable(
    [
      "client",
      "snapshotter",
      "index",
      "pulled",
      "first output",
      "from the registry",
      "of image",
      "disk",
    ],
    results.map((result) => [
      result.client,
      result.snapshotter,
      result.snapshotter === "overlayfs" ? "" : result.repository === "demo/plain" ? "no" : "yes",
      seconds(result.pulled),
      seconds(result.firstOutput),
      megabytes(result.registryBytes),
      `${((100 * result.registryBytes) / size).toFixed(1)} %`,
      megabytes(result.diskBytes),
    ]),
  );
  say("\nTimes count from the start of the pull. Completing layers in the background is off here.");
}

function sizeOf(image: Image): number {
  return image.layers.reduce((sum, layer) => sum + layer.size, 0);
}

function show(program: string, args: readonly string[]): void {
  say(
    `$ ${program} ${args.map((arg) => (/[\s'"]/.test(arg) ? JSON.stringify(arg) : arg)).join(" ")}`,
  );
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}
