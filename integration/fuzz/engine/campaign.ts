/** Fuzzes many targets in a few threads, and watches the threads. */
import { Worker } from "node:worker_threads";
import { describeError } from "../../../src/base/errors.ts";
import type { Finding } from "./fuzzer.ts";
import { Progress, type FuzzAnswer, type FuzzOrder } from "./messages.ts";
import type { TargetEntry } from "./target.ts";

/** What is to be fuzzed, how long, and with what. */
export interface CampaignOptions {
  /** URL of the module that exports `targets`. */
  registry: URL;
  /** What it exports, or some of them. */
  targets: Readonly<Record<string, Pick<TargetEntry, "executions">>>;
  /** Decides everything that is tried. */
  seed: number;
  threads: number;
  /** Inputs that are known already, by target. */
  corpus: ReadonlyMap<string, readonly Buffer[]>;
  /** A thread that does not get on for so long hangs; 30 s if not given. */
  stallMs?: number;
  signal?: AbortSignal;
  onReport?: (report: TargetReport) => void;
}

/** How it went with one target. */
export interface TargetReport {
  target: string;
  executions: number;
  seconds: number;
  /** Ways in which it behaved. */
  behaviours: number;
  findings: Finding[];
  /** Inputs that showed a new behaviour. */
  fresh: Buffer[];
}

const stallMsDefault = 30_000;
const checkMs = 500;
/** Far more than any input may make a target hold. */
const heapMbMax = 512;
const residentBytesMax = 3 * 2 ** 30;

/** Fuzzes each target once, as many at a time as there are threads. */
export async function runCampaign(options: CampaignOptions): Promise<TargetReport[]> {
  const waiting = Object.entries(options.targets);
  const reports: TargetReport[] = [];
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      if (options.signal?.aborted === true) return;
      const report = await fuzz(next[0], next[1].executions, options);
      reports.push(report);
      options.onReport?.(report);
    }
  };
  await Promise.all(Array.from({ length: options.threads }, work));
  return reports;
}

async function fuzz(
  target: string,
  executions: number,
  options: CampaignOptions,
): Promise<TargetReport> {
  const progress = new Progress();
  const began = performance.now();
  const report: TargetReport = {
    ...{ target, executions: 0, seconds: 0, behaviours: 0, findings: [], fresh: [] },
  };
  const order: FuzzOrder = {
    registry: options.registry.href,
    ...{ target, seed: options.seed, executions },
    corpus: [...(options.corpus.get(target) ?? [])],
    shared: progress.shared,
  };
  const worker = new Worker(new URL("./fuzz-worker.ts", import.meta.url), {
    workerData: order,
    resourceLimits: { maxOldGenerationSizeMb: heapMbMax },
  });
  const find = (problem: string): void => {
    report.findings.push({ problem, input: progress.input() });
    void worker.terminate();
  };
  const watching = watch(progress, options.stallMs ?? stallMsDefault, find);
  const stop = (): void => progress.stop();
  options.signal?.addEventListener("abort", stop);
  let isDone = false;
  worker.on("message", (answer: FuzzAnswer) => {
    if (answer.kind === "finding") {
      report.findings.push({ problem: answer.problem, input: Buffer.from(answer.input) });
      return;
    }
    isDone = true;
    report.behaviours = answer.behaviours;
    report.fresh = answer.fresh.map((bytes) => Buffer.from(bytes));
    // Connections and timers of the target may be left; nobody needs them.
    void worker.terminate();
  });
  worker.on("error", (error) => find(`the thread died: ${describeError(error)}`));
  await new Promise<void>((resolve) => worker.once("exit", () => resolve()));
  clearInterval(watching);
  options.signal?.removeEventListener("abort", stop);
  if (!isDone && report.findings.length === 0) find("the thread ended before its time");
  report.executions = progress.executions;
  report.seconds = (performance.now() - began) / 1000;
  return report;
}

/** Reports a thread that does not get on, or that makes the process too large. */
function watch(
  progress: Progress,
  stallMs: number,
  find: (problem: string) => void,
): NodeJS.Timeout {
  let [executions, movedAt] = [progress.executions, performance.now()];
  const watching = setInterval(() => {
    const now = performance.now();
    if (progress.executions !== executions) [executions, movedAt] = [progress.executions, now];
    const resident = process.memoryUsage.rss();
    if (now - movedAt > stallMs) find(`it hangs: no end after ${stallMs} ms`);
    else if (resident > residentBytesMax) find(`the process holds ${resident} bytes`);
    else return;
    clearInterval(watching);
  }, checkMs);
  return watching;
}
