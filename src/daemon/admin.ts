/** What the daemon has done when the owner of its socket asks for it with a POST. */
import type { Action } from "../telemetry/actions.ts";

/** The actions of the daemon, by path. */
export function adminActions(): Record<string, Action> {
  return {};
}
