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
