/**
 * A private directory for one test, with everything that was started or mounted there. Closing it
 * ends what is left, and fails when something was left that should not have been.
 */
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { mkdir, mkdtemp, statfs } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** Magic numbers of file systems that cannot hold overlay directories or EROFS images. */
const UNFIT_FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [0x0102_1994, "tmpfs"],
  [0x794c_7630, "overlayfs"],
]);

const open = new Set<Sandbox>();

/** A private directory, and what has to be undone in it. */
export class Sandbox {
  readonly directory: string;
  readonly #cleanups: { name: string; run: () => Promise<void> }[] = [];

  private constructor(directory: string) {
    this.directory = directory;
  }

  /** Makes a directory in `CLIP_TEST_DIRECTORY`, by default /var/tmp: short, for socket paths. */
  static async create(): Promise<Sandbox> {
    const base = process.env["CLIP_TEST_DIRECTORY"] ?? "/var/tmp";
    const kind = UNFIT_FILE_SYSTEMS.get((await statfs(base)).type);
    if (kind !== undefined) {
      throw new Error(`${base} is on ${kind}: set CLIP_TEST_DIRECTORY to a directory on a disk`);
    }
    const sandbox = new Sandbox(await mkdtemp(path.join(base, "clip-")));
    open.add(sandbox);
    return sandbox;
  }

  /** Path of a file or directory in here. */
  path(...parts: string[]): string {
    return path.join(this.directory, ...parts);
  }

  /** Makes a directory in here. */
  async subdirectory(...parts: string[]): Promise<string> {
    const directory = this.path(...parts);
    await mkdir(directory, { recursive: true });
    return directory;
  }

  /** Has something undone when this is closed; the last registered goes first. */
  onClose(name: string, cleanup: () => Promise<void>): void {
    this.#cleanups.push({ name, run: cleanup });
  }

  /**
   * Undoes everything and removes the directory.
   *
   * @throws an AggregateError that names each cleanup that failed and each mount or process that was
   *   still there afterwards (which is ended all the same).
   */
  async close(): Promise<void> {
    if (!open.delete(this)) return;
    const failures: Error[] = [];
    for (const { name, run } of this.#cleanups.toReversed()) {
      try {
        await run();
      } catch (error) {
        failures.push(new Error(`${name}: ${String(error)}`, { cause: error }));
      }
    }
    failures.push(...(await this.#awaitLeftovers()).map((what) => new Error(`left: ${what}`)));
    this.sweep();
    if (failures.length > 0) {
      throw new AggregateError(failures, failures.map((failure) => failure.message).join("; "));
    }
  }

  /** What is still mounted or running here. */
  leftovers(): string[] {
    return [
      ...mountsBelow(this.directory).map((mountpoint) => `mount ${mountpoint}`),
      ...processesBelow(this.directory).map(({ pid, command }) => `process ${pid} ${command}`),
    ];
  }

  /** Ends and removes whatever is left, at once. */
  sweep(): void {
    for (const { pid } of processesBelow(this.directory)) endProcess(pid);
    // A FUSE mount whose server is gone is unmounted lazily like any other.
    for (const mountpoint of mountsBelow(this.directory).toReversed()) {
      spawnSync("umount", ["-l", mountpoint]);
    }
    if (mountsBelow(this.directory).length === 0) {
      rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 });
    }
  }

  /** Shims and unmounts may take a moment after their owner has ended. */
  async #awaitLeftovers(): Promise<string[]> {
    for (let tries = 0; tries < 50; tries++) {
      if (this.leftovers().length === 0) break;
      await sleep(100);
    }
    return this.leftovers();
  }
}

/** Mount points below a directory, in the order in which they were mounted. */
export function mountsBelow(directory: string): string[] {
  return readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => unescapeMount(line.split(" ")[4] ?? ""))
    .filter((mountpoint) => mountpoint === directory || mountpoint.startsWith(`${directory}/`));
}

function unescapeMount(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCodePoint(Number.parseInt(octal, 8)),
  );
}

/** Processes whose command line or root directory names a directory. */
function processesBelow(directory: string): { pid: number; command: string }[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .flatMap((name) => {
      try {
        const command = readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim();
        const root = readlinkSync(`/proc/${name}/root`);
        if (command.includes(`${directory}/`) || root.startsWith(`${directory}/`)) {
          return [{ pid: Number(name), command: command.slice(0, 200) }];
        }
      } catch {
        // It has ended meanwhile.
      }
      return [];
    });
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended meanwhile.
  }
}

// A run that is interrupted leaves nothing behind either.
process.once("exit", () => {
  for (const sandbox of open) sandbox.sweep();
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.once(signal, () => process.exit(130));
}
