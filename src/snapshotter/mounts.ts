/** How a client is told to mount a snapshot: always one bind mount or one overlay. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { ClipError } from "../base/errors.ts";
import { overlayLayersMax } from "../base/limits.ts";

/** What mount(2) takes. */
export interface Mount {
  type: string;
  source: string;
  options: string[];
}

/** Where a writable snapshot keeps its changes. */
export interface UpperDirectories {
  upper: string;
  work: string;
}

/** A committed snapshot as a directory. */
export interface LowerDirectory {
  path: string;
  /** It hides everything below it: its root is opaque, which overlayfs itself does not look at. */
  opaqueRoot: boolean;
}

/** What a snapshot is put together from. */
export interface MountParts {
  /** Of an active snapshot, and of a view without parents, where it is empty. */
  own: UpperDirectories | undefined;
  readOnly: boolean;
  /** The parent first. */
  lowers: readonly LowerDirectory[];
}

/**
 * The mount of a snapshot.
 * @throws ClipError LIMIT_EXCEEDED when overlayfs or mount(2) could not take that many layers
 */
export function mountOf({ own, readOnly, lowers }: MountParts): Mount {
  const paths = visible(lowers);
  const only = paths[0] ?? own?.upper;
  if (only !== undefined && (paths.length === 0 || (readOnly && paths.length === 1))) {
    return { type: "bind", source: only, options: [readOnly ? "ro" : "rw", "rbind"] };
  }
  const options: string[] = [];
  if (!readOnly && own !== undefined) {
    options.push(`workdir=${own.work}`, `upperdir=${own.upper}`);
  }
  options.push(`lowerdir=${paths.join(":")}`);
  // With an index, an upper directory could not be mounted twice, as `nerdctl cp` does.
  if (kernelHasOverlayIndex()) options.push("index=off");
  checkSize(options, paths);
  return { type: "overlay", source: "overlay", options };
}

function visible(lowers: readonly LowerDirectory[]): string[] {
  const opaque = lowers.findIndex(({ opaqueRoot }) => opaqueRoot);
  return (opaque < 0 ? lowers : lowers.slice(0, opaque + 1)).map(({ path }) => path);
}

/** mount(2) takes one page of options; containerd shortens lower directories to fit. */
const optionsBytesMax = 4095;

function checkSize(options: readonly string[], paths: readonly string[]): void {
  const bytes = Buffer.byteLength(options.join(","));
  // containerd changes to the directory that all of them are in, and leaves it out.
  const saved = paths.length * (Buffer.byteLength(commonDirectory(paths)) + 1);
  if (paths.length > overlayLayersMax) {
    throw new ClipError("LIMIT_EXCEEDED", `${paths.length} layers are more than overlayfs takes`, {
      hint: `Overlayfs stacks at most ${overlayLayersMax} layers: squash some of the image's.`,
    });
  }
  if (bytes - saved > optionsBytesMax) {
    const needed = `${paths.length} layers need ${bytes - saved} bytes of mount options`;
    throw new ClipError("LIMIT_EXCEEDED", `${needed}: mount(2) takes ${optionsBytesMax}`, {
      hint: "Squash some of the image's layers, or choose a root with a shorter path.",
    });
  }
}

function commonDirectory(paths: readonly string[]): string {
  let common = dirname(paths[0] ?? "/");
  for (const path of paths) {
    while (common !== "/" && !path.startsWith(`${common}/`)) common = dirname(common);
  }
  return common === "/" ? "" : common;
}

let hasOverlayIndex = false;

// The module may be loaded later, so only a yes is for good.
function kernelHasOverlayIndex(): boolean {
  hasOverlayIndex ||= existsSync("/sys/module/overlay/parameters/index");
  return hasOverlayIndex;
}
