/** Whether a thread that waits for the kernel is about to die. */
import { readFile } from "node:fs/promises";

/**
 * Whether SIGKILL is pending for a thread. The kernel turns every signal that ends a process
 * without a core dump into that. A thread that cannot be looked at counts as killed.
 */
export async function isBeingKilled(threadId: number): Promise<boolean> {
  if (threadId === 0) return true;
  let status: string;
  try {
    status = await readFile(`/proc/${threadId}/status`, "utf8");
  } catch {
    return true;
  }
  return hasKillPending(status);
}

/** Whether `/proc/PID/status` shows SIGKILL as pending, for the thread or its process. */
export function hasKillPending(status: string): boolean {
  const SIGKILL = 9;
  const pending = status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm);
  return [...pending].some(([, mask]) => (BigInt(`0x${mask}`) >> BigInt(SIGKILL - 1)) & 1n);
}
