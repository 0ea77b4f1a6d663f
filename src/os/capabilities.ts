/** Giving up capabilities (capabilities(7)) for good. */
import { readFileSync } from "node:fs";
import koffi from "koffi";

const libc = koffi.load(null);
const prctlCall = libc.func(
  "int prctl(int option, unsigned long second, unsigned long third, unsigned long fourth, unsigned long fifth)",
);
const fcntlCall = libc.func("int fcntl(int fd, int command, int argument)");

const PR_CAPBSET_DROP = 24;
const PR_SET_NO_NEW_PRIVS = 38;
const F_SETFD = 2;

/** Numbers of capabilities, as in linux/capability.h. */
const numbers = {
  CAP_CHOWN: 0,
  CAP_DAC_OVERRIDE: 1,
  CAP_FOWNER: 3,
  CAP_FSETID: 4,
  CAP_SYS_PTRACE: 19,
  CAP_SYS_ADMIN: 21,
} as const;

/** A capability that can be kept. */
export type Capability = keyof typeof numbers;

/**
 * Takes all capabilities but these out of what programs can get that this process executes, and has
 * none of them get more than it has (no_new_privs). It goes for this process too once it has executed
 * itself: capabilities belong to threads, of which there are several by now.
 * @returns whether there was something to give up; false also for a process that may not
 */
export function restrictPrograms(kept: readonly Capability[]): boolean {
  const wanted = kept.reduce((set, name) => set | (1n << BigInt(numbers[name])), 0n);
  const { bounding, noNewPrivileges } = readPrivileges();
  const excess = bounding & ~wanted;
  if (excess === 0n && noNewPrivileges) return false;
  for (let capability = 0; capability < 64; capability++) {
    const isExcess = ((excess >> BigInt(capability)) & 1n) !== 0n;
    if (isExcess && prctlCall(PR_CAPBSET_DROP, capability, 0, 0, 0) !== 0) return false;
  }
  return prctlCall(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) === 0;
}

/** Has a program that is executed inherit a descriptor. */
export function keepOverExec(descriptor: number): void {
  fcntlCall(descriptor, F_SETFD, 0);
}

function readPrivileges(): { bounding: bigint; noNewPrivileges: boolean } {
  const status = readFileSync("/proc/thread-self/status", "latin1");
  const field = (name: string) => new RegExp(`^${name}:\\s*(\\w+)$`, "m").exec(status)?.[1] ?? "0";
  return { bounding: BigInt(`0x${field("CapBnd")}`), noNewPrivileges: field("NoNewPrivs") === "1" };
}
