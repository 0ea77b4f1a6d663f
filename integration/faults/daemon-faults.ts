/** What happens to daemons: they are killed, and others take their place. */
import { readFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { ClipDaemon } from "../harness/clip.ts";
import { attempt, type CommandResult } from "../harness/command.ts";
import { repositoryRoot, toolEnvironment } from "../harness/tools.ts";

/** Longest time until a daemon serves in place of another. */
const servingMs = 20_000;

/** The process that serves now, or did when it died; 0 before the first. */
export function daemonPid(clip: ClipDaemon): number {
  return pidIn(clip, "daemon");
}

/** The process that starts it. */
export function keeperPid(clip: ClipDaemon): number {
  return pidIn(clip, "keeper");
}

/** Runs `clip` to its end; a failure is a result. */
export function tryClip(args: readonly string[]): Promise<CommandResult> {
  return attempt(path.join(repositoryRoot, "bin", "clip"), args, { env: toolEnvironment() });
}

/** Ends the daemon as a crash would, and waits until another one serves. */
export async function killDaemon(clip: ClipDaemon): Promise<void> {
  const pid = daemonPid(clip);
  process.kill(pid, "SIGKILL");
  await untilServed(clip, pid);
}

/** Waits until another process serves than `pid`. */
export async function untilServed(clip: ClipDaemon, pid: number): Promise<void> {
  const deadline = Date.now() + servingMs;
  while (daemonPid(clip) === pid || daemonPid(clip) === 0) {
    if (Date.now() > deadline) throw new Error(`no new daemon serves:\n${clip.log().slice(-4000)}`);
    await sleep(5);
  }
}

/** Whether a process is there and has not ended. */
export function isRunning(pid: number): boolean {
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
}

function pidIn(clip: ClipDaemon, role: string): number {
  try {
    return Number(readFileSync(path.join(clip.state, `${role}.pid`), "latin1"));
  } catch {
    return 0;
  }
}
