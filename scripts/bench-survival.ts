/**
 * What containers notice of a daemon that dies again and again, and what a node with much on it
 * costs.
 *
 *     make -s bench-survival          a table
 *     JSON=1 make -s bench-survival   {"survival": {...}}
 *
 * `KILLS` is how often the daemon is killed: 200 if not set. `PARTS` names what is measured, of kills,
 * load, node, points, faults and fuzz: all if not set. Needs root.
 */
import { randomBytes } from "node:crypto";
import { globSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  readerMember,
  readInContainers,
  startContainers,
} from "../integration/faults/containers.ts";
import { daemonPid, killDaemon } from "../integration/faults/daemon-faults.ts";
import { faultKindOf, faultKinds } from "../integration/faults/fault-kinds.ts";
import { makeDataImage, type DataSize } from "../integration/faults/data-image.ts";
import { residentMb } from "../integration/faults/memory.ts";
import { SnapshotsClient } from "../integration/faults/snapshots-client.ts";
import { fuzzOnce } from "../integration/fuzz/fuzz.ts";
import { clip } from "../integration/harness/clip.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import { makeImage, makeLayer, pushImage, type ImageLayer } from "../integration/harness/image.ts";
import { startRegistry, type TestRegistry } from "../integration/harness/registry.ts";
import { Sandbox } from "../integration/harness/sandbox.ts";
import { startStage, type Stage } from "../integration/harness/stage.ts";
import { tarOf } from "../integration/harness/tar-writer.ts";
import { printTable } from "./table.ts";
import { testOutcomes, type TestOutcome } from "./test-outcomes.ts";

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

/** Each figure, and what is promised of it. */
const figures = {
  kills: "kill -9 of the daemon while 8 containers read; at least 200",
  failedReads: "reads that failed meanwhile; 0",
  wrongBytes: "files with wrong bytes; 0",
  resumeMsP99: "longest stall of a reader over a kill, ms; at most 1500",
  restartMs1000:
    "restart with 1,000 snapshots and 200 layers until a call is answered, ms; at most 1500",
  rssMbIdle1000: "resident with them, idle, MiB; at most 150",
  rssMbLoad: "resident with 64 containers reading cold, MiB; at most 400",
  prepareMsP99: "Prepare and Remove, 64 at a time, beside 8 cold readers, ms; at most 100",
  statePoints: "steps before which the daemon died without a loss; at least 25",
  statePointsLost: "such steps with a loss; 0",
  faults: `kinds of faults that were survived with the right bytes; ${faultKinds.length}`,
  faultsFailed: "kinds of faults that were not; 0",
  fuzzExecutions: "inputs that the fuzzers tried; at least 1,000,000",
  fuzzFindings: "inputs among them that were not handled as they should be; 0",
};

type Figures = Record<keyof typeof figures, number>;

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
  const parts: Record<string, () => Promise<Partial<Figures>>> = {
    kills: () => measureKills(registry),
    load: () => measureLoad(registry),
    node: () => measureLargeNode(registry),
    points: countStatePoints,
    faults: countFaults,
    fuzz: countInputs,
  };
  const measured: Partial<Figures> = {};
  for (const part of process.env["PARTS"]?.split(",") ?? Object.keys(parts)) {
    const measure = parts[part];
    if (measure === undefined) throw new Error(`there are ${Object.keys(parts).join(", ")}`);
    Object.assign(measured, await measure());
  }
  report(measured);
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

/** The daemon dies before steps of each operation; the tests check what follows. */
async function countStatePoints(): Promise<Partial<Figures>> {
  const outcomes = await testOutcomes(faultTests("crash-points*.test.ts"));
  const points = outcomes.filter(({ name }) => /\bbefore \w+ number \d+/.test(name));
  const statePoints = points.filter(({ passed }) => passed).length;
  return { statePoints, statePointsLost: points.length - statePoints };
}

/** Faults are provoked while containers read; the tests compare what they read. */
async function countFaults(): Promise<Partial<Figures>> {
  const all = faultTests("*.test.ts");
  const outcomes = await testOutcomes(all.filter((file) => !/\/(?:crash-points|load)/.test(file)));
  const kinds = (those: readonly TestOutcome[]) =>
    new Set(those.map(({ name }) => faultKindOf(name)).filter((kind) => kind !== undefined));
  const tried = kinds(outcomes);
  const failed = kinds(outcomes.filter(({ passed }) => !passed));
  return { faults: tried.size - failed.size, faultsFailed: failed.size };
}

async function countInputs(): Promise<Partial<Figures>> {
  const { executions, problems } = await fuzzOnce();
  for (const problem of problems) progress(problem);
  return { fuzzExecutions: executions, fuzzFindings: problems.length };
}

function faultTests(pattern: string): string[] {
  const cwd = path.join(import.meta.dirname, "../integration/faults");
  return globSync(pattern, { cwd })
    .map((file) => path.join(cwd, file))
    .toSorted();
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

function percentile(values: readonly number[], percent: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.ceil((percent / 100) * sorted.length) - 1] ?? Number.NaN;
}

function progress(text: string): void {
  process.stderr.write(`${text}\n`);
}

function report(measured: Partial<Figures>): void {
  if (process.env["JSON"] === "1") {
    process.stdout.write(`${JSON.stringify({ survival: measured })}\n`);
    return;
  }
  const names = Object.keys(figures) as (keyof Figures)[];
  printTable(
    ["figure", "value", ""],
    names.flatMap((name) => {
      const value = measured[name];
      return value === undefined
        ? []
        : [[name, String(Math.round(value * 10) / 10), figures[name]]];
    }),
  );
}
