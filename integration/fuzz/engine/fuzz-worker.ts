/** The thread in which a target is fuzzed, so that it may hang or run out of memory. */
import { parentPort, workerData } from "node:worker_threads";
import { Fuzzer } from "./fuzzer.ts";
import { Progress, type FuzzAnswer, type FuzzOrder } from "./messages.ts";
import type { TargetEntry } from "./target.ts";

const order = workerData as FuzzOrder;
const progress = new Progress(order.shared);
const { targets } = (await import(order.registry)) as { targets: Record<string, TargetEntry> };
const entry = targets[order.target];
if (entry === undefined) throw new Error(`there is no target ${order.target}`);
const target = await entry.load();

// A promise that nobody waits for must not end the thread unseen: it is a finding too.
process.on("unhandledRejection", (reason) => {
  throw reason;
});

const fuzzer = new Fuzzer({
  target,
  seed: order.seed,
  corpus: order.corpus.map((bytes) => Buffer.from(bytes)),
  onInput: (input) => progress.begin(input),
  onFinding: ({ problem, input }) => answer({ kind: "finding", problem, input }),
});
await fuzzer.run((executions) => executions >= order.executions || progress.isStopped);
await target.close?.();
const { executions, behaviours, fresh } = fuzzer;
answer({ kind: "done", executions, behaviours, fresh: [...fresh] });

function answer(message: FuzzAnswer): void {
  parentPort?.postMessage(message, []);
}
