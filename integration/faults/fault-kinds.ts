/** The kinds of faults that the tests in this folder provoke for real. */
import { test, type TestContext } from "node:test";

/** Faults of the machine, of processes and of their threads. */
const processFaults = [
  "disk-full-while-filling",
  "disk-full-while-writing-metadata",
  "disk-full-while-storing",
  "inodes-exhausted",
  "root-read-only",
  "out-of-descriptors",
  "clock-jump",
  "worker-out-of-memory",
  "worker-death",
  "fuse-thread-death",
  "reader-killed",
  "container-killed",
  "containerd-restart",
  "fuse-mount-taken-away",
] as const;

/** Faults of the disk's contents, of registries and of content caches. */
const dataFaults = [] as const;

/** Every kind; each has at least one test. */
export const faultKinds = [...processFaults, ...dataFaults] as const;

/** One of them. */
export type FaultKind = (typeof faultKinds)[number];

/** Registers a test of a fault: its name begins with the kind. */
export function faultTest(
  kind: FaultKind,
  what: string,
  work: (context: TestContext) => Promise<void>,
): void {
  test(`${kind}: ${what}`, work);
}

/** The kind that a test of this name is for. */
export function faultKindOf(testName: string): FaultKind | undefined {
  return faultKinds.find((kind) => testName.startsWith(`${kind}: `));
}
