/** Which fields of a snapshot an Update changes. */
import { ClipError } from "../base/errors.ts";
import type { Labels } from "./snapshot.ts";

/**
 * The labels after an Update. Labels are all that can be changed: without paths they are replaced,
 * `labels` replaces them, `labels.<key>` takes over one (or deletes it, when it has no value).
 * @throws ClipError ARGUMENT_INVALID for any other path
 */
export function updatedLabels(current: Labels, wanted: Labels, paths: readonly string[]): Labels {
  if (paths.length === 0) return wanted;
  let labels = new Map(current);
  for (const path of paths) {
    if (path === "labels") labels = new Map(wanted);
    else if (path.startsWith("labels.")) {
      const key = path.slice("labels.".length);
      labels.set(key, wanted.get(key) ?? "");
    } else {
      throw new ClipError("ARGUMENT_INVALID", `cannot update field ${JSON.stringify(path)}`);
    }
  }
  return labels;
}
