/** What keeper and daemon say to each other over the channel between them, and what is inherited. */

/** Descriptors that the keeper opens and each daemon inherits. */
export const deviceDescriptor = 3;
export const lockDescriptor = 4;

/** What the keeper tells the daemon. */
export type KeeperMessage =
  /** The one before is gone: take over. */
  | { kind: "go" }
  /** Comes with a connection of a client. */
  | { kind: "connection"; id: number }
  /** Unmount everything and end. */
  | { kind: "stop" }
  /** Leave everything mounted for the next daemon, and end. */
  | { kind: "detach" };

/** What the daemon tells the keeper. */
export type DaemonMessage =
  /** Its code is loaded, and it waits. */
  | { kind: "loaded" }
  /** Another daemon has the lock; it ends. */
  | { kind: "locked" }
  /** It has that connection now. */
  | { kind: "accepted"; id: number }
  /** It serves. */
  | { kind: "ready" }
  /** The FUSE session has ended and cannot be resumed; it ends. */
  | { kind: "over" };

/** A message of the keeper; undefined for what is none: the other end may be of another version. */
export function parseKeeperMessage(value: unknown): KeeperMessage | undefined {
  return parse(value, ["go", "stop", "detach"], "connection");
}

/** A message of the daemon; undefined for what is none. */
export function parseDaemonMessage(value: unknown): DaemonMessage | undefined {
  return parse(value, ["loaded", "locked", "ready", "over"], "accepted");
}

/** A message of one of these kinds, or of that one which has the number of a connection. */
function parse<Plain extends string, Numbered extends string>(
  value: unknown,
  plain: readonly Plain[],
  numbered: Numbered,
): { kind: Plain } | { kind: Numbered; id: number } | undefined {
  if (typeof value !== "object" || value === null || !("kind" in value)) return undefined;
  const kind = plain.find((known) => known === value.kind);
  if (kind !== undefined) return { kind };
  if (value.kind !== numbered || !("id" in value) || typeof value.id !== "number") return undefined;
  return { kind: numbered, id: value.id };
}
