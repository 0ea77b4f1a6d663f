/**
 * Ends a daemon in front of a chosen system call, from outside: strace attaches to it and injects the
 * signal, so nothing in the daemon knows of it.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import path from "node:path";
import type { ClipDaemon } from "../harness/clip.ts";
import { daemonPid, isRunning, untilServed } from "./daemon-faults.ts";

/** The n-th system call of a kind in a thread, on a file below clip's root if one is named. */
export interface CrashPoint {
  call: string;
  nth: number;
  file?: string;
}

/** How long an operation may take to come to the point. */
const reachedMs = 10_000;

/** A point in the name of a test. */
export function nameOf({ call, nth, file }: CrashPoint): string {
  return `before ${call} number ${nth}${file === undefined ? "" : ` on ${file}`}`;
}

/**
 * Has an operation die at a point, and waits until the next daemon serves.
 * @returns whether the operation succeeded nevertheless
 */
export async function dieIn(
  clip: ClipDaemon,
  point: CrashPoint,
  operation: () => Promise<unknown>,
): Promise<boolean> {
  const pid = daemonPid(clip);
  const trap = await setTrap(clip, point);
  const succeeded = operation().then(
    () => true,
    () => false,
  );
  const died = await trap.sprung(reachedMs);
  assert.ok(died, "the point was reached");
  await untilServed(clip, pid);
  return succeeded;
}

/** The arguments of a strace that has a program die in front of a system call. */
export function traceArguments({ call, nth }: CrashPoint): string[] {
  return [
    ...["-f", "-o", "/dev/null"],
    ...["-e", `trace=${call}`, "-e", `inject=${call}:signal=KILL:when=${nth}`],
  ];
}

/** Whether daemons can be traced on this machine. */
export function canCrash(): boolean {
  return spawnSync("strace", ["-V"]).status === 0;
}

/**
 * Has the daemon that serves now die in front of a system call.
 * @returns waits until it has died, or gives up the trap; tells whether it has died
 */
async function setTrap(
  clip: ClipDaemon,
  point: CrashPoint,
): Promise<{ sprung(waitMs: number): Promise<boolean> }> {
  const traced = point.file === undefined ? [] : ["-P", path.join(clip.root, point.file)];
  const pid = daemonPid(clip);
  const strace = spawn("strace", [...traceArguments(point), "-p", String(pid), ...traced], {
    stdio: ["ignore", "ignore", "pipe"],
  });
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
