/** The EROFS mounts of the layers, one directory a layer, kept over restarts where they are alive. */
import { mkdir, readdir, rmdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { ClipError, describeError } from "../base/errors.ts";
import { asDiskError } from "../cache/files.ts";
import { MNT_DETACH, unmount } from "../os/libc.ts";
import { readMountTable, type MountEntry } from "../os/mount-table.ts";
import type { Log } from "../telemetry/log.ts";
import { mountErofs } from "./erofs-mount.ts";
import type { LayerRecords, MountRecord } from "./records.ts";

/** What {@link LayerMounts} is made with. */
export interface LayerMountsOptions {
  /** Holds one directory a layer, named by its number. An absolute path without symlinks. */
  directory: string;
  /** Where the FUSE session is mounted. */
  fuseMountpoint: string;
  readAheadKilobytes: number;
  records: LayerRecords;
  log: Log;
}

/** Where the data of a mount comes from. */
export type MountBacking = "fuse" | "local";

/** Mounts layers; see the module. Calls for one layer must not overlap. */
export class LayerMounts {
  readonly #options: LayerMountsOptions;
  readonly #live = new Map<number, MountRecord>();
  /** Layers of which an earlier run left several mounts, one over the other. */
  readonly #covered = new Set<number>();
  #fuseDevice = "";

  constructor(options: LayerMountsOptions) {
    this.#options = options;
  }

  /**
   * Takes over the mounts that an earlier run left and that still work; detaches the others. The
   * FUSE session must be mounted.
   */
  async open(): Promise<void> {
    const { directory, fuseMountpoint, records, log } = this.#options;
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const table = await readMountTable();
    this.#fuseDevice =
      table.findLast((entry) => entry.mountpoint === fuseMountpoint)?.device ?? "none";
    for (const [number, entries] of byLayer(table, directory)) {
      const record = records.mountOf(number);
      const alive =
        record !== undefined &&
        record.device === entries.at(-1)?.device &&
        (record.backing === "local" || record.backing === this.#fuseDevice);
      // A container may be using the one below, which read from the session.
      if (entries.length > 1) this.#covered.add(number);
      if (alive) this.#live.set(number, record);
      else await this.#detach(number, entries.length);
      log.debug({ number, alive }, "found the mount of a layer");
    }
  }

  /** Layers with mounts that were taken over and may read from the FUSE session. */
  servedByFuse(): number[] {
    return [...this.#live].flatMap(([number, { backing }]) =>
      backing === "local" && !this.#covered.has(number) ? [] : [number],
    );
  }

  /** What the layer's mount reads from; undefined when it is not mounted. */
  async current(number: number): Promise<MountBacking | undefined> {
    const live = this.#live.get(number);
    if (live === undefined) return undefined;
    // The root of the layer is metadata, which the kernel has: this asks nothing of FUSE.
    const { dev } = await stat(this.path(number)).catch(() => ({ dev: 0 }));
    if (deviceName(dev) !== live.device) return undefined;
    return live.backing === "local" ? "local" : "fuse";
  }

  /** Layers whose local file is, or was last, what their mount reads from. */
  localDevices(): number[] {
    return this.#options.records.mountsBackedBy("local");
  }

  /** Where a layer is mounted, or will be. */
  path(number: number): string {
    return join(this.#options.directory, String(number));
  }

  /**
   * Mounts a layer, over what is mounted there already.
   * @throws ClipError SYSTEM_CALL, DISK_FULL
   */
  async mount(number: number, image: string, device: string, backing: MountBacking): Promise<void> {
    const { records, readAheadKilobytes, log } = this.#options;
    const target = this.path(number);
    await mkdir(target, { recursive: true, mode: 0o755 }).catch((error: unknown) => {
      throw asDiskError(error);
    });
    await mountErofs({ image, device, target, readAheadKilobytes, log });
    const record = {
      device: deviceName((await stat(target)).dev),
      backing: backing === "local" ? "local" : this.#fuseDevice,
    };
    records.setMount(number, record);
    this.#live.set(number, record);
  }

  /** Detaches every mount of a layer; whoever uses it keeps it until the end. */
  async release(number: number): Promise<void> {
    this.#live.delete(number);
    const { directory } = this.#options;
    const entries = byLayer(await readMountTable(), directory).get(number) ?? [];
    await this.#detach(number, entries.length);
    await rmdir(this.path(number)).catch(ignoreMissing);
  }

  /** Removes the directories of layers that are not among these. */
  async sweep(keep: ReadonlySet<number>): Promise<void> {
    for (const name of await readdir(this.#options.directory)) {
      if (!keep.has(Number(name))) await this.release(Number(name));
    }
  }

  /** Detaches every mount of every layer. */
  async releaseAll(): Promise<void> {
    this.#live.clear();
    for (const [number, entries] of byLayer(await readMountTable(), this.#options.directory)) {
      await this.#detach(number, entries.length);
    }
  }

  async #detach(number: number, times: number): Promise<void> {
    for (let time = 0; time < times; time++) {
      try {
        await unmount(this.path(number), MNT_DETACH);
      } catch (error) {
        this.#options.log.warn(
          { number, error: describeError(error) },
          "a layer could not be unmounted",
        );
        return;
      }
    }
  }
}

/** The mounts on each layer's directory, lowest first. */
function byLayer(table: readonly MountEntry[], directory: string): Map<number, MountEntry[]> {
  const found = new Map<number, MountEntry[]>();
  for (const entry of table) {
    const name = basename(entry.mountpoint);
    if (dirname(entry.mountpoint) !== directory || !/^[1-9]\d*$/.test(name)) continue;
    const entries = found.get(Number(name)) ?? [];
    found.set(Number(name), [...entries, entry]);
  }
  return found;
}

/** `major:minor` of a st_dev (makedev(3), Linux). */
function deviceName(dev: number): string {
  const bits = BigInt(dev);
  const major = ((bits >> 8n) & 0xfffn) | ((bits >> 32n) & ~0xfffn);
  const minor = (bits & 0xffn) | ((bits >> 12n) & ~0xffn);
  return `${major}:${minor & 0xffffffffn}`;
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code === "ENOENT") return;
  throw new ClipError("SYSTEM_CALL", `a mount point cannot be removed: ${error.message}`, {
    cause: error,
  });
}
