/** Memory of this process that it does not need at present. */
import koffi from "koffi";

const libc = koffi.load(null);
const mallocTrim = findMallocTrim();

/** Gives pages back to the kernel that were freed but kept; does nothing where libc cannot (musl). */
export function releaseFreedMemory(): void {
  mallocTrim?.(0);
}

function findMallocTrim() {
  try {
    return libc.func("int malloc_trim(size_t pad)");
  } catch {
    return undefined;
  }
}
