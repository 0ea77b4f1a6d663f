/** Containers that read files with known checksums, and tell how that went. */
import { readFile } from "node:fs/promises";
import path from "node:path";
import type { Stage } from "../harness/stage.ts";
import type { TarMember } from "../harness/tar-writer.ts";

/** What `reader.py` prints. */
export interface ReaderResult {
  reads: number;
  files: number;
  failed: number;
  wrong: number;
  /** Beginning and end of each slow read, in milliseconds since 1970. */
  slow: [number, number][];
}

/** The reader, for a layer of an image with Python. */
export async function readerMember(): Promise<TarMember> {
  const data = await readFile(path.join(import.meta.dirname, "reader.py"));
  return { name: "reader.py", data };
}

/** runc knows the containers of the whole machine. */
function containerId(number: number): string {
  return `clip-${process.pid}-${number}`;
}

/** Starts containers that do nothing yet. */
export async function startContainers(
  { containerd }: Stage,
  reference: string,
  count: number,
): Promise<void> {
  for (let number = 0; number < count; number++) {
    const run = ["run", "-d", "--snapshotter", "clip", reference];
    await containerd.ctr([...run, containerId(number), "sleep", "1000000"]);
  }
}

/** Has the containers read for a while. */
export function readInContainers(
  { containerd }: Stage,
  count: number,
  seconds: number,
): Promise<ReaderResult[]> {
  return Promise.all(
    Array.from({ length: count }, async (_, number) => {
      const exec = ["task", "exec", "--exec-id", `r${Date.now()}`, containerId(number)];
      const reader = ["python3", "/reader.py", String(number), String(count), String(seconds)];
      const timeoutMs = (seconds + 120) * 1000;
      const output = await containerd.ctr([...exec, ...reader], { timeoutMs });
      return JSON.parse(output) as ReaderResult;
    }),
  );
}
