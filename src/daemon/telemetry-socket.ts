/** Where a daemon is asked how it is doing, and told what to do. */
import { join } from "node:path";

/** The unix socket of the daemon whose state directory this is. */
export function telemetrySocket(state: string): string {
  return join(state, "metrics.sock");
}
