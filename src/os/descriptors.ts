/** File descriptors that come from other processes, or go to them. */
import { closeSync } from "node:fs";
import koffi from "koffi";
import { ClipError } from "../base/errors.ts";

const libc = koffi.load(null);
const syscallCall = libc.func("long syscall(long number, long first, long second, long third)");
const socketCall = libc.func("int socket(int domain, int type, int protocol)");
const sendmsgCall = libc.func("long sendmsg(int socket, const void *message, int flags)");

// The same on every architecture (syscalls(2)).
const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;
const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;

/**
 * A copy of a descriptor that another process has open (pidfd_getfd(2), Linux 5.6).
 * @throws ClipError SYSTEM_CALL
 */
export function copyDescriptor(pid: number, descriptor: number): number {
  const process = check("pidfd_open", syscallCall(SYS_PIDFD_OPEN, pid, 0, 0));
  try {
    return check("pidfd_getfd", syscallCall(SYS_PIDFD_GETFD, process, descriptor, 0));
  } finally {
    closeSync(process);
  }
}

/**
 * Sends a datagram to a unix socket, with a copy of a descriptor if one is given (unix(7)).
 * @param address path of the socket; a leading "@" stands for the abstract namespace
 * @throws ClipError SYSTEM_CALL
 */
export function sendDatagram(address: string, text: string, descriptor?: number): void {
  const name = Buffer.alloc(110);
  name.writeUInt16LE(AF_UNIX, 0);
  const nameBytes = 2 + name.write(address, 2, 107);
  if (address.startsWith("@")) name[2] = 0;
  const data = Buffer.from(text);
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(koffi.address(data), 0);
  vector.writeBigUInt64LE(BigInt(data.length), 8);
  const control = descriptor === undefined ? Buffer.alloc(0) : rightsMessage(descriptor);
  const message = Buffer.alloc(56);
  message.writeBigUInt64LE(koffi.address(name), 0);
  message.writeUInt32LE(nameBytes, 8);
  message.writeBigUInt64LE(koffi.address(vector), 16);
  message.writeBigUInt64LE(1n, 24);
  if (control.length > 0) {
    message.writeBigUInt64LE(koffi.address(control), 32);
    message.writeBigUInt64LE(BigInt(control.length), 40);
  }
  const socket = check("socket", socketCall(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0));
  try {
    check("sendmsg", sendmsgCall(socket, message, 0));
  } finally {
    closeSync(socket);
  }
}

/** A control message that carries one descriptor (cmsg(3)). */
function rightsMessage(descriptor: number): Buffer {
  const message = Buffer.alloc(24);
  message.writeBigUInt64LE(20n, 0);
  message.writeInt32LE(SOL_SOCKET, 8);
  message.writeInt32LE(SCM_RIGHTS, 12);
  message.writeInt32LE(descriptor, 16);
  return message;
}

function check(call: string, result: unknown): number {
  const value = Number(result);
  if (value >= 0) return value;
  const errno = koffi.errno();
  const name = Object.entries(koffi.os.errno).find(([, known]) => known === errno)?.[0];
  throw new ClipError("SYSTEM_CALL", `${call} failed: ${name ?? `errno ${errno}`}`, {
    context: { call, errno },
  });
}
