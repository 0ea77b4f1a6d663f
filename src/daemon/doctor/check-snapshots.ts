/** Whether the table of snapshots fits itself, the layers, and the directories on disk. */
import { mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { detachMountsBelow } from "../../os/mount-table.ts";
import { hasDirectories, refLabel, type Snapshot } from "../../snapshotter/snapshot.ts";
import { SnapshotStore } from "../../snapshotter/store.ts";
import type { Finding } from "./finding.ts";
import { databases, type NodeView, type Patient } from "./patient.ts";

/** What is made for a snapshot is there before the snapshot is recorded: so old it is left over. */
export const leftOverMs = 10 * 60_000;

/** All that is wrong with snapshots. */
export async function* checkSnapshots(patient: Patient, view: NodeView): AsyncGenerator<Finding> {
  yield* orphans(patient, view);
  yield* unknownLayers(view);
  yield* missingDirectories(patient, view);
  yield* leftDirectories(patient, view);
}

/** Snapshots without the parent that they name, and all that stand on them; the topmost first. */
function* orphans(
  { config: { root }, live }: Patient,
  { snapshots }: NodeView,
): Generator<Finding> {
  for (const snapshot of withoutParents(snapshots)) {
    const repair = async () => {
      const store = SnapshotStore.open(join(root, databases.snapshots));
      try {
        await store.remove(snapshot.name);
      } finally {
        store.close();
      }
    };
    yield {
      severity: "error",
      what: `the snapshot stands on ${JSON.stringify(snapshot.parent)}, which is lost`,
      where: snapshot.name,
      advice: `${live === undefined ? "A repair forgets it" : "`clip doctor --repair`, when the daemon is stopped, forgets it"}; then remove what uses it from containerd, and pull the image again.`,
      ...(live === undefined ? { repair } : {}),
    };
  }
}

function withoutParents(snapshots: readonly Snapshot[]): Snapshot[] {
  const byName = new Map(snapshots.map((snapshot) => [snapshot.name, snapshot]));
  const depthOf = (snapshot: Snapshot): number => {
    let depth = 0;
    let at: Snapshot | undefined = snapshot;
    for (; at !== undefined && depth <= snapshots.length; depth++) {
      if (at.parent === "") return 0;
      at = byName.get(at.parent);
    }
    return depth;
  };
  const lost = snapshots.flatMap((snapshot) => {
    const depth = depthOf(snapshot);
    return depth > 0 ? [{ snapshot, depth }] : [];
  });
  return lost.sort((a, b) => b.depth - a.depth).map(({ snapshot }) => snapshot);
}

function* unknownLayers({ snapshots, layers, formerNumbers }: NodeView): Generator<Finding> {
  const known = new Set(layers.map(({ number }) => number));
  for (const { name, layer, labels } of snapshots) {
    if (layer === undefined || known.has(layer) || formerNumbers.has(layer)) continue;
    yield {
      severity: "error",
      what: `the snapshot is layer ${layer}, of which nothing is known any more`,
      where: labels.get(refLabel) ?? name,
      advice: "Remove the images and containers that use it from containerd, and pull again.",
    };
  }
}

async function* missingDirectories(
  { config: { root } }: Patient,
  { snapshots }: NodeView,
): AsyncGenerator<Finding> {
  for (const snapshot of snapshots) {
    if (!hasDirectories(snapshot)) continue;
    const content = join(root, "s", String(snapshot.id));
    const work = join(root, "w", String(snapshot.id));
    if (!(await isThere(content))) {
      const isActive = snapshot.kind === "active";
      yield {
        severity: "error",
        what: `the files of the ${snapshot.kind} snapshot ${JSON.stringify(snapshot.name)} are lost`,
        where: content,
        advice: isActive
          ? "A repair has the container begin again from its image."
          : "Remove the images that use it from containerd, and pull again.",
        ...(isActive ? { repair: () => makeDirectory(content, 0o755) } : {}),
      };
    }
    if (snapshot.kind === "active" && !(await isThere(work))) {
      yield {
        severity: "error",
        what: `the work directory of the snapshot ${JSON.stringify(snapshot.name)} is lost`,
        where: work,
        advice: "A repair makes it anew: it holds nothing.",
        repair: () => makeDirectory(work, 0o711),
      };
    }
  }
}

async function* leftDirectories(
  { config: { root }, live }: Patient,
  { snapshots }: NodeView,
): AsyncGenerator<Finding> {
  const ids = new Set(snapshots.map(({ id }) => String(id)));
  for (const parent of ["s", "w"]) {
    for (const name of await readdir(join(root, parent)).catch(() => [])) {
      const path = join(root, parent, name);
      if (ids.has(name) || (live !== undefined && !(await isOld(path)))) continue;
      yield {
        severity: "warning",
        what: "a directory that belongs to no snapshot",
        where: path,
        advice:
          parent === "s"
            ? `A repair moves it to ${join(root, "lost")}; the next start of the daemon deletes it.`
            : "A repair deletes it, as does the next start of the daemon.",
        repair: () => (parent === "s" ? moveToLost(root, name) : discard(path)),
      };
    }
  }
}

/** What somebody has written is not thrown away because a table was damaged. */
async function moveToLost(root: string, name: string): Promise<void> {
  const lost = join(root, "lost");
  await mkdir(lost, { recursive: true, mode: 0o700 });
  const path = join(root, "s", name);
  await detachMountsBelow(path);
  await rename(path, join(lost, `${name}-${Date.now()}`));
}

async function discard(path: string): Promise<void> {
  await detachMountsBelow(path);
  await rm(path, { recursive: true, force: true });
}

async function makeDirectory(path: string, mode: number): Promise<void> {
  await mkdir(path, { recursive: true, mode });
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined))?.isDirectory() === true;
}

/** Whether nothing has happened to a file for long enough; false when it is not there. */
export async function isOld(path: string): Promise<boolean> {
  const found = await stat(path).catch(() => undefined);
  return found !== undefined && Date.now() - Math.max(found.mtimeMs, found.ctimeMs) > leftOverMs;
}
