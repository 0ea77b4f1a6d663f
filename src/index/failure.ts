/** What may be wrong with an encoded layer index. */
import { ClipError } from "../base/errors.ts";

/** The error for an index that contradicts itself or what was expected of it. */
export function corruptIndex(what: string, cause?: unknown): ClipError {
  return new ClipError("CORRUPT_INDEX", `corrupt layer index: ${what}`, { cause });
}

/** @throws ClipError CORRUPT_INDEX when `condition` does not hold */
export function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw corruptIndex(what);
}

/** @throws ClipError LIMIT_EXCEEDED when `value` is larger than `limit` */
export function checkLimit(value: number, limit: number, what: string): void {
  if (value <= limit) return;
  throw new ClipError("LIMIT_EXCEEDED", `layer index: ${what} is ${value}, more than ${limit}`);
}
