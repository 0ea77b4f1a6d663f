/** What /proc tells of other processes (proc_pid_stat(5)). */
import { readFileSync } from "node:fs";

/** The parent of a process; undefined when it has ended. */
export function parentOf(pid: number): number | undefined {
  const stat = statOf(pid);
  return stat === undefined || isOver(stat.state) ? undefined : stat.parent;
}

/**
 * Whether a process runs no more. A thread of it may still hang in the kernel: then it keeps its
 * files, and whoever waits for the process waits for the thread.
 */
export function isDead(pid: number): boolean {
  const stat = statOf(pid);
  return stat === undefined || isOver(stat.state);
}

/** Whether a process is dead and not gone. */
export function isUndead(pid: number): boolean {
  return isOver(statOf(pid)?.state ?? "");
}

function isOver(state: string): boolean {
  return state === "Z" || state === "X";
}

function statOf(pid: number): { state: string; parent: number } | undefined {
  try {
    const [, state = "", parent] =
      /\) (\S) (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, "latin1")) ?? [];
    return { state, parent: Number(parent) };
  } catch {
    return undefined;
  }
}
