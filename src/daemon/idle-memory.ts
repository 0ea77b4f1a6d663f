/** Gives memory back that a burst of work has left behind. */
import { releaseFreedMemory } from "../os/memory.ts";

/** How often it is looked whether there is work. */
const periodMs = 5_000;
/** CPU time in a period, of all threads, up to which there is none worth speaking of. */
const idleCpuMs = 250;

/**
 * Once after each burst of work, when little is left to do, garbage is collected and what is free
 * goes back to the kernel: V8 and libc would keep it for a next burst that may never come.
 * Goes on until the process ends, which it does not keep from ending.
 */
export function releaseMemoryWhenIdle(): void {
  let cpuBefore = process.cpuUsage();
  let worked = true;
  setInterval(() => {
    const { user, system } = process.cpuUsage(cpuBefore);
    cpuBefore = process.cpuUsage();
    const idle = user + system < idleCpuMs * 1000;
    if (idle && worked) {
      // There where the daemon was started with --expose-gc.
      globalThis.gc?.({ type: "major", flavor: "last-resort" });
      releaseFreedMemory();
      cpuBefore = process.cpuUsage();
    }
    worked = !idle;
  }, periodMs).unref();
}
