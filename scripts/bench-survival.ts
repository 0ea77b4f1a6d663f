/**
 * What containers notice of a daemon that dies again and again, and what a node with much on it
 * costs.
 *
 *     make -s bench-survival          a table
 *     JSON=1 make -s bench-survival   {"survival": {...}}
 *
 * `KILLS` is how often the daemon is killed: 200 if not set. Needs root.
 */
import { randomBytes } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import {
  readerMember,
  readInContainers,
  startContainers,
} from "../integration/faults/containers.ts";
import { daemonPid, killDaemon } from "../integration/faults/daemon-faults.ts";
import { makeDataImage, type DataSize } from "../integration/faults/data-image.ts";
import { residentMb } from "../integration/faults/memory.ts";
import { SnapshotsClient } from "../integration/faults/snapshots-client.ts";
import { clip } from "../integration/harness/clip.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import { makeImage, makeLayer, pushImage, type ImageLayer } from "../integration/harness/image.ts";
import { startRegistry, type TestRegistry } from "../integration/harness/registry.ts";
import { Sandbox } from "../integration/harness/sandbox.ts";
import { startStage, type Stage } from "../integration/harness/stage.ts";
import { tarOf } from "../integration/harness/tar-writer.ts";
import { printTable } from "./table.ts";

const KILLS = Number(process.env["KILLS"] ?? 200);
const READERS = 8;
const ROUND_SECONDS = 40;
const ROUND_DATA: DataSize = { files: 320, fileBytes: 262_144 };
const LOAD_CONTAINERS = 64;
const LOAD_SECONDS = 20;
const LOAD_DATA: DataSize = { files: 1024, fileBytes: 262_144 };
const PREPARES_AT_ONCE = 64;
const SNAPSHOTS = 1000;
const LAYERS = 200;
/** A chain that overlayfs can mount. */
const LAYERS_PER_IMAGE = 100;
const RESTARTS = 5;
/** Nothing has happened for this long: the node is idle. */
const IDLE_MS = 45_000;

interface Figures {
  kills: number;
  failedReads: number;
  wrongBytes: number;
  resumeMsP99: number;
  restartMs1000: number;
  rssMbIdle1000: number;
  rssMbLoad: number;
  prepareMsP99: number;
}

/** When the daemon was killed, and when another one served. */
interface Kill {
  at: number;
  served: number;
}

const sandbox = await Sandbox.create();
let images = 0;
try {
  await main();
} finally {
  await sandbox.close();
}

async function main(): Promise<void> {
  const registry = await startRegistry(sandbox);
  const survived = await measureKills(registry);
  const loaded = await measureLoad(registry);
  const large = await measureLargeNode(registry);
  report({ ...survived, ...large, ...loaded });
}

/** Eight containers read cold and warm data while the daemon is killed at random moments. */
async function measureKills(
  registry: TestRegistry,
): Promise<Pick<Figures, "kills" | "failedReads" | "wrongBytes" | "resumeMsP99">> {
  const stage = await startStage(sandbox, {
    generation: "2",
    mode: "auto",
    registry,
    name: "kill",
  });
  const stalls: number[] = [];
  let [failedReads, wrongBytes] = [0, 0];
  while (stalls.length < KILLS) {
    const reference = await pushData(registry, ROUND_DATA);
    await pull(stage, reference);
    await startContainers(stage, reference, READERS);
    const reading = readInContainers(stage, READERS, ROUND_SECONDS);
    const kills = await killUntil(stage, reading);
    const results = await reading;
    const slow = results.flatMap((result) => result.slow);
    stalls.push(...kills.map((kill) => longestStall(kill, slow)));
    for (const { failed, wrong } of results) {
      failedReads += failed;
      wrongBytes += wrong;
    }
    const reads = results.reduce((sum, result) => sum + result.reads, 0);
    progress(`${stalls.length} kills, ${reads} reads in this round`);
    await stage.containerd.prune();
  }
  await stopStage(stage);
  return { kills: stalls.length, failedReads, wrongBytes, resumeMsP99: percentile(stalls, 99) };
}

async function killUntil(stage: Stage, reading: Promise<unknown>): Promise<Kill[]> {
  const ended = reading.then(
    () => true,
    () => true,
  );
  const kills: Kill[] = [];
  while (!(await Promise.race([ended, sleep(1200 * Math.random(), false)]))) {
    const at = Date.now();
    await killDaemon(stage.clip);
    kills.push({ at, served: Date.now() });
  }
  return kills;
}

/** The longest of the reads that were under way, or began, while nobody served. */
function longestStall({ at, served }: Kill, slow: readonly [number, number][]): number {
  const over = slow.filter(([began, ended]) => began < served && ended > at);
  return Math.max(0, ...over.map(([began, ended]) => ended - began));
}

/** Ordinary snapshots beside eight cold readers, and memory with 64 of them. */
async function measureLoad(
  registry: TestRegistry,
): Promise<Pick<Figures, "rssMbLoad" | "prepareMsP99">> {
  const stage = await startStage(sandbox, {
    generation: "2",
    mode: "auto",
    registry,
    name: "load",
  });
  const first = await pushData(registry, ROUND_DATA);
  await pull(stage, first);
  await startContainers(stage, first, READERS);
  const reading = readInContainers(stage, READERS, LOAD_SECONDS);
  const prepares = await prepareUntil(stage, reading);
  await reading;
  await stage.containerd.prune();
  const second = await pushData(registry, LOAD_DATA);
  await pull(stage, second);
  await startContainers(stage, second, LOAD_CONTAINERS);
  const load = readInContainers(stage, LOAD_CONTAINERS, LOAD_SECONDS);
  let rssMbLoad = 0;
  const ended = load.then(() => true);
  while (!(await Promise.race([ended, sleep(200, false)]))) {
    rssMbLoad = Math.max(rssMbLoad, residentMb(stage.clip));
  }
  progress(`${prepares.length} times Prepare and Remove`);
  await stopStage(stage);
  return { rssMbLoad, prepareMsP99: percentile(prepares, 99) };
}

/** Milliseconds of each Prepare with its Remove, 64 of them at a time. */
async function prepareUntil(stage: Stage, reading: Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  const over = new AbortController();
  void reading.finally(() => over.abort());
  const client = new SnapshotsClient(stage.clip.address);
  const work = async (worker: number): Promise<void> => {
    for (let count = 0; !over.signal.aborted; count++) {
      const key = `bench-${worker}-${count}`;
      const began = performance.now();
      await client.prepare(key);
      await client.remove(key);
      times.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: PREPARES_AT_ONCE }, (_, worker) => work(worker)));
  client.close();
  return times;
}

/** A node with 1,000 snapshots and 200 mounted layers. */
async function measureLargeNode(
  registry: TestRegistry,
): Promise<Pick<Figures, "restartMs1000" | "rssMbIdle1000">> {
  const stage = await startStage(sandbox, {
    generation: "2",
    mode: "auto",
    registry,
    name: "large",
  });
  for (let count = 0; count < LAYERS / LAYERS_PER_IMAGE; count++) {
    await pull(stage, await pushManyLayers(registry));
  }
  // containerd would remove what it has not made itself.
  await stage.containerd.stop();
  const client = new SnapshotsClient(stage.clip.address);
  for (let count = LAYERS; count < SNAPSHOTS; count++) await client.prepare(`large-${count}`);
  client.close();
  await sleep(IDLE_MS);
  const rss = [residentMb(stage.clip)];
  const restarts: number[] = [];
  for (let count = 0; count < RESTARTS; count++) {
    restarts.push(await timeRestart(stage));
    await sleep(1000);
  }
  await sleep(IDLE_MS);
  rss.push(residentMb(stage.clip));
  const layerMounts = stage.clip.mounts().length - 1;
  progress(
    `${layerMounts} layers mounted; restarts took ${restarts.map(Math.round).join(", ")} ms`,
  );
  progress(`resident before and after them: ${rss.map(Math.round).join(", ")} MiB`);
  await stage.containerd.start();
  await stopStage(stage);
  return { restartMs1000: Math.max(...restarts), rssMbIdle1000: Math.max(...rss) };
}

/** From the death of a daemon until the next one answers a call. */
async function timeRestart(stage: Stage): Promise<number> {
  const began = performance.now();
  process.kill(daemonPid(stage.clip), "SIGKILL");
  const client = new SnapshotsClient(stage.clip.address);
  // A connection that the dead daemon had taken is lost; the next one waits.
  for (;;) {
    const found = await client.exists(`large-${SNAPSHOTS - 1}`).catch(() => undefined);
    if (found === false) throw new Error("a snapshot was lost");
    if (found === true) break;
  }
  client.close();
  return performance.now() - began;
}

async function pushData(registry: TestRegistry, size: DataSize): Promise<string> {
  const [base, python] = (await debianImage()).layers;
  if (base === undefined || python === undefined) throw new Error("the image has layers");
  const directory = await sandbox.subdirectory(`image-${++images}`);
  const image = await makeDataImage(directory, [base, python], size, [await readerMember()]);
  return publish(await pushImage(image, registry.host, `survival/data-${images}`));
}

async function pushManyLayers(registry: TestRegistry): Promise<string> {
  const directory = await sandbox.subdirectory(`image-${++images}`);
  const layers: ImageLayer[] = [];
  for (let count = 0; count < LAYERS_PER_IMAGE; count++) {
    const file = `${directory}/${count}.tar`;
    const data = randomBytes(65_536);
    await writeFile(file, tarOf([{ name: `file-${count}`, data }]));
    layers.push(await makeLayer(file));
  }
  const image = makeImage(layers);
  return publish(await pushImage(image, registry.host, `survival/layers-${images}`));
}

async function publish(reference: string): Promise<string> {
  await clip(["index", "create", reference, "--push", "--plain-http"], { timeoutMs: 600_000 });
  return reference;
}

async function pull({ containerd }: Stage, reference: string): Promise<void> {
  const timeoutMs = 300_000;
  const flags = ["--plain-http", "--snapshotter", "clip"];
  await containerd.ctr(["image", "pull", ...flags, reference], { timeoutMs });
}

async function stopStage(stage: Stage): Promise<void> {
  await stage.containerd.close();
  await stage.clip.stop();
}

function percentile(figures: readonly number[], percent: number): number {
  const sorted = figures.toSorted((a, b) => a - b);
  return sorted[Math.ceil((percent / 100) * sorted.length) - 1] ?? Number.NaN;
}

function progress(text: string): void {
  process.stderr.write(`${text}\n`);
}

function report(figures: Figures): void {
  if (process.env["JSON"] === "1") {
    process.stdout.write(`${JSON.stringify({ survival: figures })}\n`);
    return;
  }
  const shown: [keyof Figures, string][] = [
    ["kills", "kill -9 of the daemon while 8 containers read"],
    ["failedReads", "reads that failed"],
    ["wrongBytes", "files with wrong bytes"],
    ["resumeMsP99", "longest stall of a reader over a kill, ms"],
    ["restartMs1000", "restart with 1,000 snapshots and 200 layers until a call is answered, ms"],
    ["rssMbIdle1000", "resident with them, idle, MiB"],
    ["rssMbLoad", "resident with 64 containers reading cold, MiB"],
    ["prepareMsP99", "Prepare and Remove, 64 at a time, beside 8 cold readers, ms"],
  ];
  printTable(
    ["figure", "", "value"],
    shown.map(([name, what]) => [name, what, String(Math.round(figures[name] * 10) / 10)]),
  );
}
