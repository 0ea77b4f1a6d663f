/** Whether what is mounted below the root is what should be. Looks at tables only. */
import { spawn } from "node:child_process";
import { basename, dirname, join } from "node:path";
import { MNT_DETACH, MNT_FORCE, unmount } from "../../os/libc.ts";
import { mountpointsBelow, type MountEntry } from "../../os/mount-table.ts";
import type { Finding } from "./finding.ts";
import type { NodeView, Patient } from "./patient.ts";

/** How long a file system may take to answer that nobody serves. */
const probeMs = 3_000;

/** All that is wrong with mounts. */
export async function* checkMounts(patient: Patient, view: NodeView): AsyncGenerator<Finding> {
  const fuse = await findSession(patient, view);
  yield* session(patient, fuse);
  yield* layerMounts(patient, view, fuse);
  yield* strangers(patient, view);
  yield* missing(patient, view);
}

/** The FUSE session below a root. */
interface Session {
  mountpoint: string;
  /** The topmost mount there is the one that counts. */
  mounts: MountEntry[];
  state: "none" | "dead" | "waiting" | "served";
}

async function findSession(
  { config: { root }, live }: Patient,
  { mountTable }: NodeView,
): Promise<Session> {
  const mountpoint = join(root, "f");
  const mounts = mountTable.filter((entry) => entry.mountpoint === mountpoint);
  const isFuse = mounts.at(-1)?.type.startsWith("fuse") === true;
  if (!isFuse) return { mountpoint, mounts, state: "none" };
  return { mountpoint, mounts, state: live === undefined ? await probe(mountpoint) : "served" };
}

function* session({ live }: Patient, { mountpoint, mounts, state }: Session): Generator<Finding> {
  if (state === "none" && live !== undefined) {
    yield {
      severity: "error",
      what: "the FUSE session is not mounted",
      where: mountpoint,
      advice: "The daemon begins a new one when it is restarted: `clip upgrade`.",
    };
  }
  if (state === "waiting") {
    yield {
      severity: "note",
      what: "a FUSE session that waits for a daemon",
      where: mountpoint,
      advice: "Start the daemon: whoever reads waits for it.",
    };
  }
  if (state === "dead") {
    yield {
      severity: "error",
      what: "a FUSE session that has ended",
      where: mountpoint,
      advice: "A repair unmounts it, as does the next start of the daemon.",
      // A thread of a daemon that died may still wait for an answer.
      repair: () => detach(mountpoint, mounts.length, MNT_DETACH | MNT_FORCE),
    };
  }
}

async function* layerMounts(
  { config: { root }, live }: Patient,
  view: NodeView,
  fuse: Session,
): AsyncGenerator<Finding> {
  const served = fuse.state === "dead" ? undefined : fuse.mounts.at(-1)?.device;
  for (const [mountpoint, entries] of mountsIn(view.mountTable, join(root, "l"))) {
    const number = Number(basename(mountpoint));
    const isKnown = view.layers.some((known) => known.number === number);
    const record = view.mountRecords.get(number);
    const isOurs = record !== undefined && record.device === entries.at(-1)?.device;
    const isServed = record?.backing === "local" || record?.backing === served;
    if ((isKnown && isOurs && isServed) || view.formerNumbers.has(number)) continue;
    yield {
      severity: isKnown ? "error" : "warning",
      what: isKnown
        ? "a mount of a layer that nobody serves any more"
        : "a mount of a layer that is not known",
      where: mountpoint,
      advice: "A repair unmounts it; containers that use it have to be started again.",
      repair: async () => {
        await detach(mountpoint, entries.length);
        if (isKnown) await live?.mount(number);
      },
    };
  }
}

/** Mounts where none belong. */
function* strangers({ config: { root } }: Patient, { mountTable }: NodeView): Generator<Finding> {
  const belongs = (path: string) =>
    path === root || path === join(root, "f") || dirname(path) === join(root, "l");
  const all = mountpointsBelow(mountTable, root);
  for (const mountpoint of new Set(all)) {
    // What is tried at a daemon's start is gone in a moment.
    if (belongs(mountpoint) || /\/selftest-\d+\//.test(mountpoint)) continue;
    yield {
      severity: "warning",
      what: "a mount that does not belong here",
      where: mountpoint,
      advice: "A repair unmounts it.",
      repair: () => detach(mountpoint, all.filter((other) => other === mountpoint).length),
    };
  }
}

/** Layers below snapshots that are in use, and not mounted, as after a boot. */
function* missing(
  { config: { root }, live }: Patient,
  { snapshots, layers, mountTable }: NodeView,
): Generator<Finding> {
  if (live === undefined || live.mode === "fuse") return;
  const mounted = new Set(mountTable.map(({ mountpoint }) => mountpoint));
  const byName = new Map(snapshots.map((snapshot) => [snapshot.name, snapshot]));
  const known = new Set(layers.map(({ number }) => number));
  const wanted = new Set<number>();
  for (const { kind, parent } of snapshots) {
    if (kind === "committed") continue;
    for (let at = byName.get(parent); at !== undefined; at = byName.get(at.parent)) {
      if (at.layer !== undefined && known.has(at.layer)) wanted.add(at.layer);
    }
  }
  for (const number of wanted) {
    const mountpoint = join(root, "l", String(number));
    if (mounted.has(mountpoint)) continue;
    yield {
      severity: "note",
      what: "a layer below a container is not mounted",
      where: mountpoint,
      advice: "It is mounted when the container is started; a repair does so now.",
      repair: async () => void (await live.mount(number)),
    };
  }
}

function mountsIn(table: readonly MountEntry[], directory: string): Map<string, MountEntry[]> {
  const inside = table.filter(({ mountpoint }) => dirname(mountpoint) === directory);
  return Map.groupBy(inside, ({ mountpoint }) => mountpoint);
}

async function detach(mountpoint: string, times: number, flags = MNT_DETACH): Promise<void> {
  for (let time = 0; time < times; time++) await unmount(mountpoint, flags);
}

/**
 * Whether a FUSE mount has lost its server for good. It is asked by another process, which can be
 * ended while it waits.
 */
async function probe(mountpoint: string): Promise<"dead" | "waiting"> {
  const child = spawn("stat", ["-f", mountpoint], { stdio: "ignore" });
  const killer = setTimeout(() => child.kill("SIGKILL"), probeMs);
  const code = await new Promise<number | null>((resolve) => {
    child.once("exit", resolve);
    child.once("error", () => resolve(null));
  });
  clearTimeout(killer);
  return code === null || code === 0 ? "waiting" : "dead";
}
