/** The log: one JSON object a line on stderr, where journald and people read it. */
import { pino, type Logger } from "pino";

/** What modules write to; `log.child({ layer })` carries fields along. */
export type Log = Pick<Logger, "debug" | "info" | "warn" | "error" | "fatal"> & {
  child(fields: Record<string, unknown>): Log;
};

/** How much is written. */
export const logLevels = ["debug", "info", "warn", "error", "silent"] as const;
export type LogLevel = (typeof logLevels)[number];

/**
 * Opens the log. It writes synchronously, so that no line is lost when the process dies.
 * Credentials never reach it: callers log hosts and digests, not headers or URLs with queries.
 */
export function openLog(level: LogLevel): Log {
  return pino(
    { level, base: null, timestamp: () => `,"time":"${new Date().toISOString()}"` },
    // 2 is stderr: stdout belongs to what a command prints.
    pino.destination({ fd: 2, sync: true }),
  );
}

/** A log that drops everything, for tests and for callers that want none. */
export const silentLog: Log = pino({ level: "silent" });
