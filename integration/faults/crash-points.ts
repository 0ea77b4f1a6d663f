/**
 * Ends a daemon in front of a chosen system call, from outside: strace attaches to it and injects the
 * signal, so nothing in the daemon knows of it.
 */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import type { ClipDaemon } from "../harness/clip.ts";
import { daemonPid, isRunning } from "./daemon-faults.ts";

/** The n-th system call of a kind in a thread, on a file below clip's root if one is named. */
export interface CrashPoint {
  call: string;
  nth: number;
  file?: string;
}

/** Whether daemons can be traced on this machine. */
export function canCrash(): boolean {
  return spawnSync("strace", ["-V"]).status === 0;
}

/**
 * Has the daemon that serves now die in front of a system call.
 * @returns waits until it has died, or gives up the trap; tells whether it has died
 */
export async function setTrap(
  clip: ClipDaemon,
  { call, nth, file }: CrashPoint,
): Promise<{ sprung(waitMs: number): Promise<boolean> }> {
  const traced = file === undefined ? [] : ["-P", path.join(clip.root, file)];
  const pid = daemonPid(clip);
  const strace = spawn(
    "strace",
    [
      ...["-f", "-p", String(pid), "-o", "/dev/null", ...traced],
      ...["-e", `trace=${call}`, "-e", `inject=${call}:signal=KILL:when=${nth}`],
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  const ended = once(strace, "exit");
  // It tells of each thread; the signal works in all of them once the last is attached.
  await new Promise<void>((resolve, reject) => {
    let timer = setTimeout(() => reject(new Error("strace does not attach")), 10_000);
    strace.stderr.on("data", () => {
      clearTimeout(timer);
      timer = setTimeout(resolve, 100);
    });
  });
  return {
    sprung: async (waitMs) => {
      const timer = setTimeout(() => strace.kill("SIGINT"), waitMs);
      await ended;
      clearTimeout(timer);
      return !isRunning(pid);
    },
  };
}
