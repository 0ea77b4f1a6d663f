/** How the layers of a node are mounted. */
import { ClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { supportsErofs } from "./erofs-mount.ts";

/** `erofs`: the kernel serves metadata; `fuse`: a directory tree in the FUSE session. */
export type MountMode = "erofs" | "fuse";

/**
 * The mode for layers below `root`; `auto` is the best that the kernel and the file system can do.
 * @throws ClipError ARGUMENT_INVALID when EROFS is wanted and cannot be had
 */
export async function chooseMountMode(
  wanted: MountMode | "auto",
  root: string,
  log: Log,
): Promise<MountMode> {
  if (wanted === "fuse") return "fuse";
  if (await supportsErofs(root, log)) return "erofs";
  if (wanted === "auto") return "fuse";
  throw new ClipError("ARGUMENT_INVALID", "this kernel cannot mount layers with EROFS", {
    hint: 'It takes Linux 6.12 and a root that is not on overlayfs; or set mount.mode = "fuse".',
  });
}
