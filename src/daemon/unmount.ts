/** Taking away the mounts of a root whose daemon is gone. */
import { dirname, join } from "node:path";
import { describeError } from "../base/errors.ts";
import { MNT_DETACH, MNT_FORCE, tryLock, unmount } from "../os/libc.ts";
import { readMountTable } from "../os/mount-table.ts";
import type { Log } from "../telemetry/log.ts";

/**
 * Ends the FUSE session below `root` and detaches the mounts of layers, unless they are another
 * clip's.
 * @param lock descriptor of the root's lock, which the daemons of this process shared
 */
export async function unmountBelow(root: string, lock: number, log: Log): Promise<void> {
  if (!tryLock(lock)) return;
  const places = (await readMountTable()).map(({ mountpoint }) => mountpoint);
  const session = places.filter((place) => place === join(root, "f"));
  const layers = places.filter((place) => dirname(place) === join(root, "l"));
  // The session first, by force: whoever waits for an answer, as a thread of the daemon that died or
  // the end of a layer's mount may, would wait for ever.
  const calls = [
    ...session.map((place) => ({ place, flags: MNT_DETACH | MNT_FORCE })),
    ...layers.map((place) => ({ place, flags: MNT_DETACH })),
  ];
  for (const { place, flags } of calls) {
    await unmount(place, flags).catch((error: unknown) => {
      log.warn({ mountpoint: place, error: describeError(error) }, "unmounting failed");
    });
  }
}
