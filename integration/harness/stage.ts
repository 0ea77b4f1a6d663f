/** A whole node for a test: clip, containerd before it, and the registry that they pull from. */
import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { ClipDaemon, type ClipSettings } from "./clip.ts";
import { Containerd, lines, type ContainerdOptions } from "./containerd.ts";
import type { TestRegistry } from "./registry.ts";
import type { Sandbox } from "./sandbox.ts";

/** How layers are mounted. */
export const mountModes = ["erofs", "fuse"] as const;
export type MountMode = (typeof mountModes)[number] | "auto";

/** How a node is started. */
export interface StageOptions extends Omit<ContainerdOptions, "clipAddress"> {
  mode: MountMode;
  registry: Pick<TestRegistry, "host">;
  /** Further settings of clip. */
  settings?: ClipSettings;
  /** Further environment variables of clip. */
  environment?: Readonly<Record<string, string>>;
}

/** A node that is running. */
export interface Stage {
  clip: ClipDaemon;
  containerd: Containerd;
}

/** Starts a node in a sandbox. Layers are not completed in the background unless settings say so. */
export async function startStage(sandbox: Sandbox, options: StageOptions): Promise<Stage> {
  const name = options.name ?? "node";
  const clip = await ClipDaemon.start(sandbox, {
    containerdAddress: sandbox.path(`${name}-containerd`, "containerd.sock"),
    name: `${name}-clip`,
    networkNamespace: options.networkNamespace,
    environment: options.environment ?? {},
    settings: {
      ...options.settings,
      log: { level: "debug" },
      mount: { mode: options.mode },
      layer: { background_fill: false, ...options.settings?.["layer"] },
      registry: {
        host: [{ name: options.registry.host, plain_http: true }],
        ...options.settings?.["registry"],
      },
    },
  });
  const containerd = await Containerd.start(sandbox, {
    ...options,
    name: `${name}-containerd`,
    clipAddress: clip.address,
  });
  return { clip, containerd };
}

/**
 * Starts clip again and waits until containerd, which tries to reach it ever more seldom, has found
 * it: until then every call fails.
 */
export async function startClipAgain(stage: Stage): Promise<void> {
  await stage.clip.start();
  await containerdReachesClip(stage);
}

async function containerdReachesClip({ containerd }: Stage): Promise<void> {
  for (let tries = 0; ; tries++) {
    const list = ["snapshots", "--snapshotter", "clip", "ls"];
    const { status, stderr } = await containerd.tryCtr(list);
    if (status === 0) return;
    assert.ok(tries < 300, `containerd does not reach clip: ${stderr}`);
    await sleep(100);
  }
}

/**
 * Removes every container and image, and fails unless all that belonged to them is gone: snapshots,
 * mounts of layers, and directories of snapshots. What clip caches of layers may stay.
 */
export async function assertNothingLeft(stage: Stage): Promise<void> {
  const { clip, containerd } = stage;
  // While it does not reach clip, containerd forgets snapshots without having them removed.
  await containerdReachesClip(stage);
  // nerdctl keeps records of its own.
  for (const id of lines(await containerd.nerdctl(["ps", "--all", "--quiet"]))) {
    await containerd.nerdctl(["rm", "--force", id]);
  }
  await containerd.prune();
  let left: string[] = [];
  for (let tries = 0; tries < 100; tries++) {
    left = await leftovers(clip, containerd);
    if (left.length === 0) return;
    await sleep(100);
  }
  assert.deepEqual(left, [], "nothing is left of containers and images");
}

async function leftovers(clip: ClipDaemon, containerd: Containerd): Promise<string[]> {
  const snapshots = await containerd.snapshots("clip");
  const mounts = clip.mounts().filter((mountpoint) => !isSession(clip, mountpoint));
  const directories: string[] = [];
  for (const kind of ["s", "w", "trash"]) {
    const names = await readdir(path.join(clip.root, kind)).catch(() => []);
    directories.push(...names.map((name) => path.join(kind, name)));
  }
  return [...snapshots, ...mounts, ...directories];
}

/** The one FUSE mount through which all layers are served lives as long as the daemon. */
function isSession(clip: ClipDaemon, mountpoint: string): boolean {
  return mountpoint === path.join(clip.root, "f");
}
