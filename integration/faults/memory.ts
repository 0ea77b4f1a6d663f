/** What processes have in memory. */
import { readFileSync } from "node:fs";
import type { ClipDaemon } from "../harness/clip.ts";
import { daemonPid, keeperPid } from "./daemon-faults.ts";

/**
 * Resident megabytes of keeper and daemon: what each has for itself, and once what they have of the
 * same files, which is little more than the program that both run.
 */
export function residentMb(clip: ClipDaemon): number {
  const [keeper, daemon] = [keeperPid(clip), daemonPid(clip)].map(statusOf);
  if (keeper === undefined || daemon === undefined) throw new Error("clip does not run");
  const kilobytes = keeper.anonymous + daemon.anonymous + Math.max(keeper.ofFiles, daemon.ofFiles);
  return kilobytes / 1024;
}

function statusOf(pid: number): { anonymous: number; ofFiles: number } {
  const status = readFileSync(`/proc/${pid}/status`, "latin1");
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1]);
  return { anonymous: field("RssAnon") + field("RssShmem"), ofFiles: field("RssFile") };
}
