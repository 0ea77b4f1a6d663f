/**
 * The few system calls that Node lacks, through koffi. The only folder that imports it.
 * Every function is for Linux on glibc or musl, 64 bit, little-endian.
 */
import koffi from "koffi";
import { ClipError } from "../base/errors.ts";

const libc = koffi.load(null);

type ForeignFunction = ReturnType<typeof libc.func>;

const mountCall = libc.func(
  "int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)",
);
const umountCall = libc.func("int umount2(const char *target, int flags)");
const clockGettimeCall = libc.func("int clock_gettime(int clock, void *time)");
const fallocateCall = libc.func("int fallocate(int fd, int mode, int64_t offset, int64_t length)");
const fadviseCall = libc.func(
  "int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)",
);
const flockCall = libc.func("int flock(int fd, int operation)");

/** mount(2): read-only. */
export const MS_RDONLY = 1;
/** umount2(2): end the session of a FUSE mount, so that whoever waits for it gets an error. */
export const MNT_FORCE = 1;
/** umount2(2): detach now, clean up when no longer busy. */
export const MNT_DETACH = 2;

/** What mount(2) takes. */
export interface MountRequest {
  source: string;
  target: string;
  type: string;
  flags: number;
  /** Options of the file system, comma-separated; at most a page. */
  data: string;
}

/**
 * mount(2) on a thread of its own, since it may have to wait for a file system that this very
 * process serves.
 * @throws ClipError SYSTEM_CALL
 */
export async function mount(request: MountRequest): Promise<void> {
  const { source, target, type, flags, data } = request;
  const errno = await callAsync(mountCall, [source, target, type, flags, data]);
  if (errno !== 0) throw systemCallError("mount", errno, `${type} at ${target}`);
}

/**
 * umount2(2) on a thread of its own.
 * @throws ClipError SYSTEM_CALL
 */
export async function unmount(target: string, flags = 0): Promise<void> {
  const errno = await callAsync(umountCall, [target, flags]);
  if (errno !== 0) throw systemCallError("umount2", errno, target);
}

/** The wall clock in nanoseconds since 1970; Node's own is only good for milliseconds. */
export function wallClockNanoseconds(): bigint {
  const time = Buffer.alloc(16);
  clockGettimeCall(0 /* CLOCK_REALTIME */, time);
  return time.readBigInt64LE(0) * 1_000_000_000n + time.readBigInt64LE(8);
}

/**
 * Frees the blocks of `length` bytes at `offset`, on a thread of its own; they read as zeros
 * afterwards.
 * @throws ClipError SYSTEM_CALL
 */
export async function punchHole(fd: number, offset: number, length: number): Promise<void> {
  const FALLOC_FL_KEEP_SIZE = 1;
  const FALLOC_FL_PUNCH_HOLE = 2;
  const mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  const errno = await callAsync(fallocateCall, [fd, mode, offset, length]);
  if (errno !== 0) throw systemCallError("fallocate", errno, `fd ${fd}`);
}

/**
 * Has the kernel drop what it remembers of `length` bytes at `offset` (0: all up to the end), apart
 * from what is mapped or not written yet, on a thread of its own. Only an advice: it never fails.
 */
export async function adviseNotNeeded(fd: number, offset: number, length: number): Promise<void> {
  const POSIX_FADV_DONTNEED = 4;
  await callAsync(fadviseCall, [fd, offset, length, POSIX_FADV_DONTNEED]);
}

/**
 * Takes the exclusive lock of an open file if nobody has it (flock(2)); it goes with the descriptor.
 * @returns whether it was free
 * @throws ClipError SYSTEM_CALL
 */
export function tryLock(fd: number): boolean {
  const LOCK_EX = 2;
  const LOCK_NB = 4;
  const result: unknown = flockCall(fd, LOCK_EX | LOCK_NB);
  if (result === 0) return true;
  const errno = koffi.errno();
  if (errno === koffi.os.errno["EWOULDBLOCK"] || errno === koffi.os.errno["EAGAIN"]) return false;
  throw systemCallError("flock", errno, `fd ${fd}`);
}

function systemCallError(call: string, errno: number, where: string): ClipError {
  const name =
    Object.entries(koffi.os.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`;
  return new ClipError("SYSTEM_CALL", `${call} failed: ${name}: ${where}`, {
    context: { call, errno },
  });
}

// koffi reports the errno of an asynchronous call inside its callback.
function callAsync(call: ForeignFunction, parameters: (string | number)[]): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...parameters, (error: Error | null, result: number) => {
      if (error !== null) reject(error);
      else resolve(result === 0 ? 0 : koffi.errno());
    });
  });
}
