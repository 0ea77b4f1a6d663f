/**
 * How fast a layer index is built, and how large it is, on the layers of an image made of Debian
 * packages, beside `gzip -dc` of the same file, in interleaved rounds.
 *
 *     make -s bench-index          a table
 *     JSON=1 make -s bench-index   {"index": {"mbPerSecond", "ratioToGunzip",
 *                                             "ratioToGunzipOneCore", "sizeRatio"}}
 *
 * The speed is that on one core, to which all threads of the build are bound. The ratio to gzip is
 * that of a build as it is, which hashes beside it decodes; the ratio on one core is told too.
 * The JSON is about the bottom layer: a Debian root file system.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { availableParallelism } from "node:os";
import { run } from "../integration/harness/command.ts";
import { debianImage } from "../integration/harness/debian-image.ts";
import type { ImageLayer } from "../integration/harness/image.ts";
import { buildLayerIndex } from "../src/index/build.ts";
import { median, megabytes, printTable } from "./table.ts";

/** Uncompressed bytes between two checkpoints: clip's default. */
const SPAN_BYTES = 1 << 20;

const ROUNDS = 7;

/** Set in the process that is bound to one core. */
const BOUND = "CLIP_BENCH_BOUND";

/** One build of an index. */
interface Build {
  milliseconds: number;
  /** Bytes of the encoded index. */
  size: number;
}

interface Figures {
  mbPerSecond: number;
  ratioToGunzip: number;
  ratioToGunzipOneCore: number;
  sizeRatio: number;
}

if (process.env[BOUND] === undefined) await main();
else process.on("message", (file: string) => void build(file).then((made) => process.send?.(made)));

async function main(): Promise<void> {
  const { layers } = await debianImage();
  const figures: Figures[] = [];
  const bound = startBound();
  for (const layer of layers) {
    figures.push(await measure(layer, bound));
    if (process.env["JSON"] === "1") break;
  }
  bound.disconnect();
  if (process.env["JSON"] === "1") {
    process.stdout.write(`${JSON.stringify({ index: figures[0] })}\n`);
    return;
  }
  printTable(
    ["layer", "compressed", "uncompressed", "one core", "gzip -dc", "of gzip", "one core", "index"],
    figures.map((figure, at) => [
      ["base", "python", "tools"][at] ?? "",
      megabytes(layers[at]?.size ?? 0),
      megabytes(layers[at]?.uncompressedSize ?? 0),
      `${figure.mbPerSecond.toFixed(0)} MB/s`,
      `${(figure.mbPerSecond * figure.ratioToGunzipOneCore).toFixed(0)} MB/s`,
      figure.ratioToGunzip.toFixed(2),
      figure.ratioToGunzipOneCore.toFixed(2),
      `${(100 * figure.sizeRatio).toFixed(2)} %`,
    ]),
  );
  process.stdout.write(
    `\nSpeeds in uncompressed bytes, medians of ${ROUNDS} rounds; "of gzip" is the time of a build\n` +
      "over that of gzip -dc. Digests of layer, content and spans are included.\n",
  );
}

async function measure(layer: ImageLayer, bound: ChildProcess): Promise<Figures> {
  const gunzips: number[] = [];
  const builds: number[] = [];
  const boundBuilds: number[] = [];
  let size = 0;
  // The first round brings the file into memory and the code to its speed.
  for (let round = 0; round <= ROUNDS; round++) {
    const gunzip = await timed(() =>
      run("sh", ["-c", 'gzip -dc "$1" > /dev/null', "sh", layer.blobFile], { timeoutMs: 600_000 }),
    );
    const free = await build(layer.blobFile);
    bound.send(layer.blobFile);
    const [onOneCore] = (await once(bound, "message")) as [Build];
    size = free.size;
    if (round === 0) continue;
    gunzips.push(gunzip);
    builds.push(free.milliseconds);
    boundBuilds.push(onOneCore.milliseconds);
  }
  return {
    mbPerSecond: layer.uncompressedSize / 1e3 / median(boundBuilds),
    ratioToGunzip: median(builds) / median(gunzips),
    ratioToGunzipOneCore: median(boundBuilds) / median(gunzips),
    sizeRatio: size / layer.uncompressedSize,
  };
}

/** This program once more, bound to one core with all its threads; it builds what it is sent. */
function startBound(): ChildProcess {
  const core = String(availableParallelism() - 1);
  const program = [process.execPath, import.meta.filename];
  return spawn("taskset", ["-c", core, ...program], {
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    env: { ...process.env, [BOUND]: "1" },
  });
}

async function build(file: string): Promise<Build> {
  let size = 0;
  const milliseconds = await timed(async () => {
    const { encoded } = await buildLayerIndex({ path: file }, { spanBytes: SPAN_BYTES });
    size = encoded.length;
  });
  return { milliseconds, size };
}

/** Milliseconds that something takes. */
async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}
