/** Paths as they stand in tar archives. */
import { nameBytesMax, pathBytesMax } from "../base/limits.ts";
import { exceeded } from "./failure.ts";

const slash = 0x2f;
const dot = 0x2e;

/**
 * The path relative to the root that `raw` means: without leading, trailing and repeated slashes
 * and without `.`; `..` leads to the parent and at the root stays there, so nothing can leave it.
 * Always a copy.
 * @throws ClipError LIMIT_EXCEEDED for a name over 255 bytes or a path over 4096.
 */
export function normalisePath(raw: Buffer): Buffer {
  const path = Buffer.allocUnsafe(raw.length);
  let length = 0;
  for (let at = 0; at < raw.length;) {
    let end = raw.indexOf(slash, at);
    if (end === -1) end = raw.length;
    const size = end - at;
    if (size === 2 && raw[at] === dot && raw[at + 1] === dot) {
      length = parentLength(path, length);
    } else if (size > 1 || (size === 1 && raw[at] !== dot)) {
      if (size > nameBytesMax) throw exceeded("the length of a name", size, nameBytesMax);
      if (length > 0) path[length++] = slash;
      length += raw.copy(path, length, at, end);
    }
    at = end + 1;
  }
  if (length > pathBytesMax) throw exceeded("the length of a path", length, pathBytesMax);
  return length === path.length ? path : path.subarray(0, length);
}

function parentLength(path: Buffer, length: number): number {
  const cut = length === 0 ? -1 : path.lastIndexOf(slash, length - 1);
  return Math.max(cut, 0);
}
