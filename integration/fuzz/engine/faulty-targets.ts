/** Targets that do what no target should, each at one kind of input. */
import { setTimeout as sleep } from "node:timers/promises";
import type { FuzzTarget, TargetEntry } from "./target.ts";

function faulty(fault: () => string | Promise<string>): TargetEntry {
  const target: FuzzTarget = {
    dictionary: ["magic"],
    seeds: () => [Buffer.from("harmless")],
    // Each letter that is right is a new behaviour, which leads to the next.
    run: (input) => {
      const text = input.toString("latin1");
      return text.includes("magic!") ? fault() : `${text.includes("magic")} ${text.length % 7}`;
    },
  };
  return { executions: 200_000, load: () => Promise.resolve(target) };
}

export const targets: Record<string, TargetEntry> = {
  none: { ...faulty(() => "fine"), executions: 5000 },
  throws: faulty(() => {
    throw new TypeError("not foreseen");
  }),
  rejects: faulty(() => Promise.reject(new RangeError("not foreseen either"))),
  "rejects-unseen": faulty(() => {
    void Promise.reject(new RangeError("seen by nobody"));
    return sleep(60_000, "too late");
  }),
  hangs: faulty(() => {
    for (;;);
  }),
  waits: faulty(() => new Promise<string>(() => setInterval(() => {}, 1000))),
  hoards: faulty(() => {
    const hoard: number[][] = [];
    for (;;) hoard.push(Array.from<number>({ length: 1_000_000 }).fill(0.5));
  }),
  exits: faulty(() => process.exit(0)),
};
