/** A shell in a container that reads files when it is told to, for as long as the container runs. */
import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { createInterface } from "node:readline";
import { run } from "../harness/command.ts";
import type { Containerd } from "../harness/containerd.ts";

/** Longest time for a read that is to end by itself. */
const readMs = 60_000;

const script = `echo ready
while read -r file; do
  if sum=$(md5sum "$file" 2>&1); then echo "read $sum"; else echo "failed $sum"; fi
done`;

/** How a read ended: the MD5 sum of the file, or an error. */
export type ReadOutcome = { sum: string } | { failure: string };

/** Reads one file after the other. */
export class ContainerReader {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #lines: AsyncIterator<string>;
  readonly #pid: number;
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(child: ChildProcessWithoutNullStreams, pid: number) {
    this.#child = child;
    this.#pid = pid;
    this.#lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  }

  /** Starts one in a container that runs. */
  static async start(containerd: Containerd, container: string): Promise<ContainerReader> {
    const exec = ["task", "exec", "--exec-id", `reader-${Date.now()}`, container];
    const child = containerd.spawnCtr([...exec, "/bin/sh", "-c", script]);
    const reader = new ContainerReader(child, await pidOf(containerd, container));
    const line = await reader.#nextLine();
    if (line !== "ready") throw new Error(`the reader says ${line}`);
    return reader;
  }

  /** Reads a file of the container. Reads wait for each other. */
  read(file: string): Promise<ReadOutcome> {
    const outcome = this.#turn.then(async (): Promise<ReadOutcome> => {
      this.#child.stdin.write(`${file}\n`);
      const line = await this.#nextLine();
      const sum = /^read ([0-9a-f]{32}) /.exec(line)?.[1];
      return sum === undefined ? { failure: line } : { sum };
    });
    this.#turn = outcome.catch(() => {});
    return outcome;
  }

  /** Has the kernel forget what it has of a file, so that the next read asks clip. */
  async forget(file: string): Promise<void> {
    await run("dd", [`if=/proc/${this.#pid}/root${file}`, "iflag=nocache", "count=0"]);
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#child.once("close", resolve));
    this.#child.stdin.end();
    this.#child.kill("SIGKILL");
    await closed;
  }

  async #nextLine(): Promise<string> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("a read hangs")), readMs);
    });
    try {
      const next = await Promise.race([this.#lines.next(), late]);
      if (next.done === true) throw new Error("the reader has ended");
      return next.value;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** The first process of a container. */
async function pidOf(containerd: Containerd, container: string): Promise<number> {
  const tasks = await containerd.ctr(["task", "ls"]);
  const pid = tasks
    .split("\n")
    .map((line) => line.split(/\s+/))
    .find(([name]) => name === container)?.[1];
  const status = readFileSync(path.join("/proc", String(pid), "status"), "utf8");
  return Number(/^Pid:\s+(\d+)/m.exec(status)?.[1]);
}
