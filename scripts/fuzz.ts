/**
 * Fuzzes what takes bytes from outside, round after round, until it is stopped or its time is over.
 *
 *     make fuzz                                 until Ctrl-C
 *     FUZZ_SECONDS=600 make fuzz                for so long
 *     FUZZ_TARGET=tar-reader make fuzz          one target alone; several with commas
 *     FUZZ_SEED=7 make fuzz                     from this seed instead of one by the clock
 *     FUZZ_TARGET=tar-reader FUZZ_INPUT=file make fuzz     one input, as findings say
 *     FUZZ_KEEP=1 make fuzz                     small inputs that behaved in a new way go to the corpus
 *
 * Ends with 1 when something was found.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fuzz, keepFresh, showReport } from "../integration/fuzz/fuzz.ts";
import { targets } from "../integration/fuzz/targets.ts";

const { env } = process;
const chosen = selectTargets(env["FUZZ_TARGET"]);
const found =
  env["FUZZ_INPUT"] === undefined ? await fuzzForLong() : await tryOne(env["FUZZ_INPUT"]);
process.exit(found ? 1 : 0);

async function fuzzForLong(): Promise<boolean> {
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  const seconds = Number(env["FUZZ_SECONDS"] ?? 0);
  if (seconds > 0) setTimeout(() => stop.abort(), seconds * 1000);
  const seed = Number(env["FUZZ_SEED"] ?? Date.now() % 2 ** 32);
  process.stdout.write(`seed ${seed}\n`);
  const summary = await fuzz({
    ...{ targets: chosen, seed, signal: stop.signal, rounds: Infinity },
    onReport: (report) => process.stdout.write(`${showReport(report)}\n`),
  });
  if (env["FUZZ_KEEP"] === "1") await keepFresh(summary.reports);
  const { executions, problems } = summary;
  process.stdout.write(`${[...problems, `${executions} executions`].join("\n\n")}\n`);
  return problems.length > 0;
}

/** Tries one input on each of the chosen targets. */
async function tryOne(path: string): Promise<boolean> {
  const input = await readFile(join(process.cwd(), path));
  for (const [name, { load }] of Object.entries(chosen)) {
    const target = await load();
    process.stdout.write(`${name}: ${await target.run(input)}\n`);
    await target.close?.();
  }
  return false;
}

function selectTargets(names: string | undefined): typeof targets {
  if (names === undefined || names === "") return targets;
  return Object.fromEntries(
    names.split(",").map((name) => {
      const entry = targets[name];
      if (entry === undefined)
        throw new Error(`no target ${name}: ${Object.keys(targets).join(", ")}`);
      return [name, entry];
    }),
  );
}
