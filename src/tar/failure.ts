/** Failures of the tar reader. */
import { ClipError } from "../base/errors.ts";

/** Something in the archive that is wrong: CORRUPT_TAR. */
export function corrupt(message: string): ClipError {
  return new ClipError("CORRUPT_TAR", message);
}

/** Something in the archive that is larger than clip accepts: LIMIT_EXCEEDED. */
export function exceeded(what: string, value: number, limit: number): ClipError {
  return new ClipError("LIMIT_EXCEEDED", `${what} in a tar archive is ${value}, over ${limit}`, {
    context: { value, limit },
  });
}
