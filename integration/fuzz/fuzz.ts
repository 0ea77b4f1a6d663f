/** Campaigns over all of clip's fuzz targets, with the corpus of this folder. */
import { join, relative } from "node:path";
import { runCampaign, type TargetReport } from "./engine/campaign.ts";
import { keepInput, readCorpus } from "./engine/corpus.ts";
import type { TargetEntry } from "./engine/target.ts";
import { targets } from "./targets.ts";

const root = join(import.meta.dirname, "../..");

/** Where the inputs are that every campaign begins with: `<target>/<name>`. */
export const corpusDirectory = join(import.meta.dirname, "corpus");

/** Where inputs go that were not handled as they should be. */
const findingsDirectory = join(root, ".tools/fuzz");

const threads = 2;
/** Inputs of earlier rounds that a target keeps. */
const keptMax = 4000;
/** Largest input that is worth a place in the corpus, and how much a target may have there. */
const corpusInputBytesMax = 2048;
const corpusBytesMax = 16 * 1024;
const corpusFilesMax = 60;

/** What is to be fuzzed. */
export interface FuzzOptions {
  /** All if not given. */
  targets?: Readonly<Record<string, TargetEntry>>;
  /** Decides everything that is tried. */
  seed: number;
  /** Each target is given its share once a round. */
  rounds: number;
  signal?: AbortSignal;
  onReport?: (report: TargetReport) => void;
}

/** What came of it. */
export interface FuzzSummary {
  /** Inputs tried. */
  executions: number;
  /** What was found, each with the command that repeats it; nothing is as it should be. */
  problems: string[];
  reports: TargetReport[];
}

/** Fuzzes; findings are written to files. */
export async function fuzz(options: FuzzOptions): Promise<FuzzSummary> {
  const chosen = options.targets ?? targets;
  const corpus = new Map<string, Buffer[]>();
  for (const target of Object.keys(chosen)) {
    corpus.set(target, [...(await readCorpus(corpusDirectory, target)).values()]);
  }
  const summary: FuzzSummary = { executions: 0, problems: [], reports: [] };
  for (let round = 0; round < options.rounds && options.signal?.aborted !== true; round++) {
    const reports = await runCampaign({
      registry: new URL("./targets.ts", import.meta.url),
      ...{ targets: chosen, corpus, threads, seed: options.seed + round },
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      ...(options.onReport === undefined ? {} : { onReport: options.onReport }),
    });
    for (const report of reports) {
      const known = corpus.get(report.target) ?? [];
      known.push(...report.fresh.slice(0, Math.max(0, keptMax - known.length)));
      summary.executions += report.executions;
      summary.reports.push(report);
      summary.problems.push(...(await keepFindings(report)));
    }
    if (summary.problems.length > 0) break;
  }
  return summary;
}

/** The campaign that runs with the tests: every target's share once, from a fixed seed. */
export function fuzzOnce(onReport?: (report: TargetReport) => void): Promise<FuzzSummary> {
  return fuzz({ seed: 1, rounds: 1, ...(onReport === undefined ? {} : { onReport }) });
}

/** A report in one line. */
export function showReport(report: TargetReport): string {
  const { target, executions, seconds, behaviours, findings } = report;
  const rate = Math.round(executions / seconds);
  return [
    `${target}: ${executions} executions in ${seconds.toFixed(1)} s, ${rate}/s`,
    `${behaviours} behaviours, ${findings.length} findings`,
  ].join(", ");
}

/** Puts small inputs that behaved in a new way into the corpus, as far as there is room. */
export async function keepFresh(reports: readonly TargetReport[]): Promise<void> {
  for (const { target, fresh } of reports) {
    const present = [...(await readCorpus(corpusDirectory, target)).values()];
    let bytes = present.reduce((sum, { length }) => sum + length, 0);
    let files = present.length;
    for (const input of fresh.filter(({ length }) => length <= corpusInputBytesMax)) {
      if (files === corpusFilesMax) break;
      if (bytes + input.length > corpusBytesMax) continue;
      files++;
      bytes += input.length;
      await keepInput(corpusDirectory, target, input);
    }
  }
}

/** Writes the inputs of findings to files, and says how each is repeated. */
async function keepFindings({ target, findings }: TargetReport): Promise<string[]> {
  const problems: string[] = [];
  for (const { problem, input } of findings) {
    const path = relative(root, await keepInput(findingsDirectory, target, input));
    problems.push(`${target}: ${problem}\n    FUZZ_TARGET=${target} FUZZ_INPUT=${path} make fuzz`);
  }
  return problems;
}
