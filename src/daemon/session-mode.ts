/** How the layers of a FUSE session are mounted, which a session cannot change while it lives. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describeError } from "../base/errors.ts";
import { chooseMountMode, type MountMode } from "../layer/mount-mode.ts";
import type { Log } from "../telemetry/log.ts";

/** What {@link sessionMode} takes. */
export interface SessionModeOptions {
  root: string;
  /** Holds the record of the mode. */
  state: string;
  wanted: MountMode | "auto";
  /** The session begins now; otherwise it is taken over, and keeps the mode that it began with. */
  fresh: boolean;
  log: Log;
}

/**
 * Decides for a session that begins, and remembers for one that goes on: what was agreed with the
 * kernel at its beginning, and the trees in use, belong to one mode.
 * @throws ClipError ARGUMENT_INVALID
 */
export async function sessionMode(options: SessionModeOptions): Promise<MountMode> {
  const { root, state, wanted, fresh, log } = options;
  const file = join(state, "mount-mode");
  const begun = fresh ? undefined : await readMode(file);
  if (begun !== undefined) {
    if (wanted !== "auto" && wanted !== begun) {
      log.warn({ wanted, mode: begun }, "the mount mode changes when clip is stopped and started");
    }
    return begun;
  }
  const mode = await chooseMountMode(wanted, root, log);
  await writeFile(file, mode).catch((error: unknown) => {
    log.warn({ file, error: describeError(error) }, "the mount mode cannot be recorded");
  });
  return mode;
}

async function readMode(file: string): Promise<MountMode | undefined> {
  const mode = await readFile(file, "utf8").catch(() => "");
  return mode === "erofs" || mode === "fuse" ? mode : undefined;
}
