/** Taking away the mounts of a root whose daemon is gone. */
import { dirname, join } from "node:path";
import { describeError } from "../base/errors.ts";
import { MNT_DETACH, unmount } from "../os/libc.ts";
import { readMountTable } from "../os/mount-table.ts";
import type { Log } from "../telemetry/log.ts";

/** Detaches the mounts of layers and the FUSE session below `root`; whoever uses one keeps it. */
export async function unmountBelow(root: string, log: Log): Promise<void> {
  const table = await readMountTable();
  const own = table.filter(
    ({ mountpoint }) => mountpoint === join(root, "f") || dirname(mountpoint) === join(root, "l"),
  );
  for (const { mountpoint } of own.toReversed()) {
    await unmount(mountpoint, MNT_DETACH).catch((error: unknown) => {
      log.warn({ mountpoint, error: describeError(error) }, "unmounting failed");
    });
  }
}
