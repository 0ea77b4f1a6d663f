/** When a request is tried again, and after how long. */
import { setTimeout as sleep } from "node:timers/promises";
import { ClipError } from "../base/errors.ts";

const firstDelayMs = 100;
const delayMsMax = 10_000;
const retryAfterMsMax = 30_000;

/** Whether an answer with this status may be another one a moment later. */
export function isTransientStatus(status: number): boolean {
  return status === 408 || status === 429 || (status >= 500 && status !== 501 && status !== 505);
}

/**
 * Milliseconds that a `Retry-After` header asks for (RFC 9110 §10.2.3: seconds or a date), at
 * most 30 s; undefined where there is none or it makes no sense.
 */
export function retryAfterMs(header: string | undefined, now: number): number | undefined {
  if (header === undefined) return undefined;
  const text = header.trim();
  const wait = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now;
  if (!Number.isFinite(wait)) return undefined;
  return Math.min(Math.max(wait, 0), retryAfterMsMax);
}

/** Exponential backoff with jitter: half of it is certain. `attempt` counts from 0. */
export function backoffMs(attempt: number): number {
  const delay = Math.min(firstDelayMs * 2 ** attempt, delayMsMax);
  return delay / 2 + Math.random() * (delay / 2);
}

/**
 * Waits, unless `signal` ends it.
 * @throws ClipError ABORTED
 */
export async function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await sleep(ms, undefined, signal === undefined ? {} : { signal });
  } catch (error) {
    throw new ClipError("ABORTED", "the caller gave up", { cause: error });
  }
}
