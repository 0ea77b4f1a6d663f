/**
 * Descriptors of a session that an earlier keeper has left: with the service manager, or with a
 * daemon that goes on although its keeper has died.
 */
import { readFileSync, readlinkSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import type { Log } from "../telemetry/log.ts";
import { deviceDescriptor, lockDescriptor } from "./keeper-protocol.ts";
import { isDead, parentOf } from "./process-state.ts";

/** What has been taken over: /dev/fuse, and the lock of the root. */
export interface Inherited {
  device: number;
  lock: number;
}

/** Name of the descriptor in the service manager's store. */
export const storedName = "clip-fuse";

/** Bound of an orphan's end. */
const orphanEndMs = 20_000;

/**
 * /dev/fuse as the service manager kept it (sd_listen_fds(3)). The environment variables are
 * removed, so that no child takes them for its own.
 */
export function takeStored(environment: NodeJS.ProcessEnv): number | undefined {
  const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES = "" } = environment;
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]) {
    delete environment[name];
  }
  if (Number(LISTEN_PID) !== process.pid) return undefined;
  const at = LISTEN_FDNAMES.split(":").slice(0, Number(LISTEN_FDS)).lastIndexOf(storedName);
  const first = 3;
  return at < 0 ? undefined : first + at;
}

/** Who keeps a root and who serves it, in files below the state directory. */
export class ProcessFiles {
  readonly #state: string;

  constructor(state: string) {
    this.#state = state;
  }

  write(role: "keeper" | "daemon", pid: number): void {
    writeFileSync(this.#path(role), `${pid}\n`);
  }

  /** 0 when there is no such file. */
  read(role: "keeper" | "daemon"): number {
    try {
      return Number(readFileSync(this.#path(role), "latin1"));
    } catch {
      return 0;
    }
  }

  async remove(): Promise<void> {
    await rm(this.#path("keeper"), { force: true });
    await rm(this.#path("daemon"), { force: true });
  }

  #path(role: string): string {
    return join(this.#state, `${role}.pid`);
  }
}

/**
 * Takes the descriptors of a daemon whose keeper has died, and has it end without unmounting.
 * @throws ClipError SYSTEM_CALL
 */
export async function takeFromOrphan(
  root: string,
  files: ProcessFiles,
  log: Log,
): Promise<Inherited | undefined> {
  const pid = files.read("daemon");
  if (pid === 0 || !isOrphan(pid, files.read("keeper"), join(root, "lock"))) return undefined;
  // What this needs is loaded only here: the keeper is small as long as nothing goes wrong.
  const { copyDescriptor } = await import("../os/descriptors.ts");
  const device = copyDescriptor(pid, deviceDescriptor);
  const lock = copyDescriptor(pid, lockDescriptor);
  log.warn({ pid }, "taking over from a daemon whose keeper has died");
  process.kill(pid, "SIGUSR2");
  const deadline = performance.now() + orphanEndMs;
  while (!isDead(pid)) {
    if (performance.now() > deadline) process.kill(pid, "SIGKILL");
    await delay(20);
  }
  return { device, lock };
}

/** Whether a process is a daemon that works on this root, and not the child of its keeper any more. */
function isOrphan(pid: number, keeper: number, lock: string): boolean {
  try {
    return (
      readlinkSync(`/proc/${pid}/fd/${deviceDescriptor}`) === "/dev/fuse" &&
      readlinkSync(`/proc/${pid}/fd/${lockDescriptor}`) === lock &&
      (keeper !== parentOf(pid) || parentOf(keeper) === undefined)
    );
  } catch {
    return false;
  }
}
