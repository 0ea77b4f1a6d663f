/** Whether nobody but the owner can get at what clip keeps. */
import { chmod, lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { telemetrySocket } from "../telemetry-socket.ts";
import type { Finding } from "./finding.ts";
import type { Patient } from "./patient.ts";

/**
 * Permissions that others may have. Whoever runs in a container, as whatever user, passes through the
 * root and its mounts; nobody else has to read or list anything.
 */
const passable = 0o711;
const closed = 0o700;
const privateFile = 0o600;

/** Directories that only clip enters. */
const closedDirectories = ["s", "w", "l", "trash", "cache", "meta", "index"];

/** Everything below the root and the state that is not a layer's or a container's own. */
export async function* checkFiles({ config }: Patient): AsyncGenerator<Finding> {
  const { root, state, address } = config;
  const wanted = new Map<string, number>([
    [root, passable],
    [state, passable],
    [address, privateFile],
    [telemetrySocket(state), privateFile],
  ]);
  for (const directory of closedDirectories) wanted.set(join(root, directory), closed);
  for (const name of await readdir(root).catch(() => [])) {
    if (/\.db(-|$)|^lock$/.test(name)) wanted.set(join(root, name), privateFile);
  }
  for (const directory of ["cache", "meta", "index"]) {
    for (const name of await readdir(join(root, directory)).catch(() => [])) {
      wanted.set(join(root, directory, name), privateFile);
    }
  }
  for (const [path, most] of wanted) yield* excess(path, most);
}

async function* excess(path: string, most: number): AsyncGenerator<Finding> {
  const found = await lstat(path).catch(() => undefined);
  if (found === undefined) return;
  const mode = found.mode & 0o777;
  const others = mode & ~most;
  if (others !== 0 || found.uid !== process.getuid?.()) {
    const isOwn = found.uid === process.getuid?.();
    yield {
      severity: "warning",
      what: isOwn
        ? `its mode is ${mode.toString(8)}, more than ${most.toString(8)}`
        : `it belongs to user ${found.uid}`,
      where: path,
      advice: isOwn ? "A repair takes the rest away." : "Nobody else should own it: chown it.",
      ...(isOwn ? { repair: () => chmod(path, mode & most) } : {}),
    };
  }
}
