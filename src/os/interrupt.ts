/**
 * Interrupting a thread that blocks in a system call. Node cannot end a worker that waits in
 * read(2), and neither can the process end then.
 */
import { constants } from "node:os";
import koffi from "koffi";

const libc = koffi.load(null);
const gettidCall = libc.func("int gettid()");
const tgkillCall = libc.func("int tgkill(int process, int thread, int signal)");
const siginterruptCall = libc.func("int siginterrupt(int signal, int flag)");

// Ignored by default, so it does no harm where nobody listens.
const signal = "SIGURG";

/** The kernel's number of the calling thread. */
export function currentThreadId(): number {
  return gettidCall() as number;
}

/**
 * From now on {@link interruptThread} makes the system call in which a thread blocks fail with
 * EINTR, where that is one that signals can interrupt. To be called on the main thread.
 */
export function enableInterrupts(): void {
  if (process.listeners(signal).includes(onSignal)) return;
  process.on(signal, onSignal);
  // Node installs its handlers in the way that restarts system calls.
  siginterruptCall(constants.signals[signal], 1);
}

/**
 * Interrupts a thread of this process. It may not block yet, or not any more: the caller repeats
 * this until the thread shows that it has noticed. Does nothing if there is no such thread.
 */
export function interruptThread(threadId: number): void {
  tgkillCall(process.pid, threadId, constants.signals[signal]);
}

function onSignal(): void {
  // The signal does its work by arriving.
}
