/** A content cache whose calls are told to an observer. */
import { isClipError } from "../../base/errors.ts";
import type { ContentCache } from "./content-cache.ts";
import { intercept, type Call, type CallOutcome } from "./intercept.ts";

/**
 * How a call ended. `hit` and `miss` are of `read` and `has`; `done` of `remove`; `skipped` means
 * that a circuit breaker let nothing through.
 */
export type EventOutcome =
  "hit" | "miss" | "stored" | "present" | "refused" | "done" | "aborted" | "skipped" | "error";

/** One call that has ended, for counters and the log. */
export interface CacheEvent {
  /** Name of the cache. */
  cache: string;
  operation: Call["operation"];
  outcome: EventOutcome;
  key: string;
  /** First byte of a read. */
  offset?: number;
  /** Bytes that were moved: of a hit or of an object that was stored; otherwise 0. */
  bytes: number;
  milliseconds: number;
  /** What was thrown, where the outcome is `error`. */
  error?: unknown;
}

/** The same cache; `observe` learns of each call and must not throw. */
export function withMetrics(
  cache: ContentCache,
  observe: (event: CacheEvent) => void,
): ContentCache {
  return intercept(cache, async (call, proceed) => {
    const started = performance.now();
    const tell = (outcome: EventOutcome, details: { bytes?: number; error?: unknown } = {}) => {
      observe({
        cache: cache.name,
        operation: call.operation,
        outcome,
        key: call.key,
        ...(call.operation === "read" ? { offset: call.offset } : {}),
        bytes: 0,
        milliseconds: performance.now() - started,
        ...details,
      });
    };
    try {
      const result = await proceed(call.signal);
      const outcome = outcomeOf(call, result);
      const moved = (outcome === "hit" && call.operation === "read") || outcome === "stored";
      tell(outcome, moved && "bytes" in call ? { bytes: call.bytes } : {});
      return result;
    } catch (error) {
      const outcome = outcomeOfError(error);
      tell(outcome, outcome === "error" ? { error } : {});
      throw error;
    }
  });
}

function outcomeOf(call: Call, result: CallOutcome): EventOutcome {
  if (typeof result === "string") return result;
  if (call.operation === "remove") return "done";
  return result === undefined ? "miss" : "hit";
}

function outcomeOfError(error: unknown): EventOutcome {
  if (isClipError(error, "ABORTED") || isClipError(error, "CLOSED")) return "aborted";
  return isClipError(error) && error.context["skipped"] === true ? "skipped" : "error";
}
