/** A daemon's process: what the keeper starts. */
import { flushCompileCache } from "node:module";
import type { Socket } from "node:net";
import { describeError, isClipError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { sendDatagram } from "../os/descriptors.ts";
import { tryLock } from "../os/libc.ts";
import type { Log } from "../telemetry/log.ts";
import { startDaemon, type Daemon } from "./daemon.ts";
import { releaseMemoryWhenIdle } from "./idle-memory.ts";
import { storedName } from "./inherited.ts";
import { KeeperLink } from "./keeper-link.ts";
import { deviceDescriptor, lockDescriptor } from "./keeper-protocol.ts";

/**
 * Serves until the keeper says otherwise. If the keeper dies it goes on, with a socket of its own,
 * until a new keeper takes over or a signal ends it.
 * @param stored the service manager is to store the descriptor of the FUSE session
 * @throws ClipError when the daemon cannot start or does not stop cleanly
 */
export async function runKeptDaemon(config: Config, stored: boolean, log: Log): Promise<void> {
  const over = Promise.withResolvers<"over">();
  const early: Socket[] = [];
  let daemon: Daemon | undefined;
  const keeper = new KeeperLink((connection) => {
    if (daemon === undefined) early.push(connection);
    else daemon.accept(connection);
  });
  keeper.tell({ kind: "loaded" });
  try {
    if (!(await keeper.go)) return;
    // The lock belongs to the open file, which the keeper and all its daemons share.
    if (!tryLock(lockDescriptor)) {
      keeper.tell({ kind: "locked" });
      return;
    }
    const onEnd = () => over.resolve("over");
    daemon = await startDaemon({ config, log, device: deviceDescriptor, onEnd });
    for (const connection of early) daemon.accept(connection);
    tellServiceManager(stored, log);
    log.info({ address: config.address, root: config.root, mode: daemon.mode }, "clip is ready");
    keeper.tell({ kind: "ready" });
    // It would be written at the end only, and not every daemon comes to an orderly one.
    flushCompileCache();
    releaseMemoryWhenIdle();
    void keeper.lost.then(() => goOnAlone(daemon, log));
    const order = await Promise.race([keeper.end, over.promise]);
    log.info({ order }, "the daemon stops");
    if (order === "over") keeper.tell({ kind: "over" });
    await daemon.close({ keepMounts: order === "detach" });
  } catch (error) {
    if (isClipError(error, "CLOSED")) keeper.tell({ kind: "over" });
    throw error;
  } finally {
    keeper.close();
  }
}

async function goOnAlone(daemon: Daemon | undefined, log: Log): Promise<void> {
  log.error({}, "the keeper has died: the daemon goes on until another clip takes over");
  try {
    await daemon?.listen();
  } catch (error) {
    log.error({ error: describeError(error) }, "no new connections are accepted");
  }
}

/**
 * Tells the service manager that the daemon serves, and has it keep the session should all processes
 * die (sd_notify(3)).
 */
function tellServiceManager(stored: boolean, log: Log): void {
  const address = process.env["NOTIFY_SOCKET"];
  if (address === undefined) {
    if (stored) log.error({}, "there is no service manager to store the FUSE session");
    return;
  }
  try {
    if (stored) sendDatagram(address, `FDSTORE=1\nFDNAME=${storedName}`, deviceDescriptor);
    sendDatagram(address, "READY=1");
  } catch (error) {
    log.error({ error: describeError(error) }, "the service manager cannot be told anything");
  }
}
