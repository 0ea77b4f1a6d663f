/** Running with no more privileges than serving layers takes. */
import { keepOverExec, restrictPrograms, type Capability } from "../os/capabilities.ts";

/**
 * What clip needs of root's power: mounting (SYS_ADMIN); making, filling and deleting directories that
 * belong to users of containers (CHOWN, FOWNER, FSETID, DAC_OVERRIDE); and taking the descriptors of a
 * daemon whose keeper has died, where the kernel allows that to parents only (SYS_PTRACE).
 */
const needed: readonly Capability[] = [
  "CAP_SYS_ADMIN",
  "CAP_CHOWN",
  "CAP_FOWNER",
  "CAP_FSETID",
  "CAP_DAC_OVERRIDE",
  "CAP_SYS_PTRACE",
];

/**
 * Of what is made without a mode of its own, nobody but the owner reads or writes files, or lists
 * directories. They may be passed through: processes of containers, of any user, have files there.
 */
const fileMask = 0o066;

/**
 * Gives up everything else. Where there is something to give up, the process executes itself, and
 * this does not return: otherwise threads that run already would keep it.
 */
export function dropPrivileges(): void {
  process.umask(fileMask);
  if (process.getuid?.() !== 0 || !restrictPrograms(needed)) return;
  // What the service manager has passed (sd_listen_fds(3)); Node has its descriptors closed.
  for (let at = 0; at < Number(process.env["LISTEN_FDS"] ?? 0); at++) keepOverExec(3 + at);
  const args = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  process.execve?.(process.execPath, args, process.env);
}
