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
  "death-in-mount",
] as const;

/** Faults of the disk's contents. */
const dataFaults = [
  "disk-rot",
  "disk-read-error",
  "layer-file-truncated",
  "metadata-image-damaged",
] as const;

/** Faults of registries, of what they send, and of the way to them. */
const registryFaults = [
  "registry-down",
  "registry-black-hole",
  "registry-silent",
  "registry-silent-body",
  "registry-trickle",
  "registry-throttled",
  "registry-failing",
  "registry-reset",
  "registry-truncated",
  "registry-ignores-range",
  "registry-bit-flips",
  "registry-other-bytes",
  "registry-wrong-range",
  "registry-lost-blob",
  "registry-redirect-loop",
  "redirect-expired",
  "token-expired",
  "password-changed",
  "certificate-replaced",
  "name-gone",
  "index-lookup-failed",
  "index-corrupt",
  "index-truncated",
  "index-of-another-layer",
] as const;

/** Faults of content caches, and of the way to them. */
const cacheFaults = [
  "cache-down",
  "cache-black-hole",
  "cache-silent-body",
  "cache-trickle",
  "cache-throttled",
  "cache-denied",
  "cache-reset",
  "cache-truncated",
  "cache-ignores-range",
  "cache-wrong-range",
  "cache-lost-object",
  "cache-bit-flips",
  "cache-other-bytes",
] as const;

/** Every kind; each has at least one test. */
export const faultKinds = [
  ...processFaults,
  ...dataFaults,
  ...registryFaults,
  ...cacheFaults,
] as const;

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
