/** Whether a thread that waits for the kernel is about to die. */
import { readFile } from "node:fs/promises";
import { constants } from "node:os";

/**
 * Whether a signal is pending for a thread that will end its process. A thread that cannot be
 * looked at counts as killed.
 */
export async function isBeingKilled(threadId: number): Promise<boolean> {
  if (threadId === 0) return true;
  let status: string;
  try {
    status = await readFile(`/proc/${threadId}/status`, "utf8");
  } catch {
    return true;
  }
  return hasFatalSignalPending(status);
}

// signal(7): what a process survives if it does nothing about it.
const harmless = maskOf(["SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH"]);
const stopping = maskOf(["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"]);

/**
 * Whether `/proc/PID/status` shows a pending signal, for the thread or its process, that is neither
 * blocked, ignored nor handled and whose default is to end the process.
 */
export function hasFatalSignalPending(status: string): boolean {
  const mask = (name: string): bigint => {
    const match = new RegExp(`^${name}:\\s*([0-9a-f]+)$`, "m").exec(status);
    return match === null ? 0n : BigInt(`0x${match[1]}`);
  };
  const pending = mask("SigPnd") | mask("ShdPnd");
  const survived = mask("SigBlk") | mask("SigIgn") | mask("SigCgt") | harmless | stopping;
  return (pending & ~survived) !== 0n;
}

function maskOf(names: (keyof typeof constants.signals)[]): bigint {
  return names.reduce((mask, name) => mask | (1n << BigInt(constants.signals[name] - 1)), 0n);
}
