/** Bounds for what a cache waits for: deadlines, abort signals, and the end of the cache. */
import { ClipError, isClipError } from "../../base/errors.ts";

/**
 * Runs `work` for at most `limitMs` and while none of `signals` fires. The signal that `work` gets
 * fires at the latest when this rejects; work that ignores it goes on unobserved.
 * @throws ClipError TIMEOUT, naming `what`; ABORTED, or the signal's reason where that is a ClipError.
 */
export async function withDeadline<Value>(
  what: string,
  limitMs: number,
  signals: readonly (AbortSignal | undefined)[],
  work: (signal: AbortSignal) => Promise<Value>,
): Promise<Value> {
  return withLinkedSignal(signals, async (signal, abort) => {
    const timer = setTimeout(() => {
      abort(new ClipError("TIMEOUT", `${what}: no answer within ${limitMs} ms`));
    }, limitMs);
    try {
      return await orAborted(work(signal), signal);
    } finally {
      clearTimeout(timer);
    }
  });
}

/**
 * Runs `work` while none of `signals` fires; the signal that it gets fires with them.
 * @throws ClipError ABORTED, or the signal's reason where that is a ClipError; work that ignores it
 *   goes on unobserved.
 */
export async function withSignals<Value>(
  signals: readonly (AbortSignal | undefined)[],
  work: (signal: AbortSignal) => Promise<Value>,
): Promise<Value> {
  return withLinkedSignal(signals, (signal) => orAborted(work(signal), signal));
}

/**
 * The outcome of `promise`, but no longer than `signal` allows; the promise itself goes on.
 * @throws ClipError ABORTED, or the signal's reason where that is a ClipError.
 */
export function orAborted<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(asReason(signal.reason));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    void promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/** What a cache has under way; closing ends it. */
export class Operations {
  readonly #name: string;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();

  /** `name` is that of the cache, for the error after the end. */
  constructor(name: string) {
    this.#name = name;
  }

  /**
   * Runs `work` with a signal that fires when `signal` does or when the cache is closed. The work
   * itself must heed it: {@link close} waits for its end.
   * @throws ClipError ABORTED or CLOSED before the work begins; afterwards what it throws.
   */
  async run<Value>(
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal) => Promise<Value>,
  ): Promise<Value> {
    const running = withLinkedSignal([this.#closing.signal, signal], work);
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  /**
   * As {@link run}, but the caller is let go when its signal fires, while `work` cleans up behind
   * it. `closing` fires only when the cache is closed.
   */
  async runDetached<Value>(
    signal: AbortSignal | undefined,
    work: (signal: AbortSignal, closing: AbortSignal) => Promise<Value>,
  ): Promise<Value> {
    const running = this.run(signal, (linked) => work(linked, this.#closing.signal));
    return signal === undefined ? running : orAborted(running, signal);
  }

  /** Aborts all that runs with CLOSED and waits until it has ended. */
  async close(): Promise<void> {
    this.#closing.abort(new ClipError("CLOSED", `content cache ${this.#name} is closed`));
    await Promise.allSettled(this.#running);
  }
}

/**
 * Runs `work` on each item, `parallel` at a time, and asks for the next one only when there is room.
 * After a failure no more is begun, the signal of what runs fires, and the first failure is thrown
 * once all of it has ended.
 */
export async function forEachParallel<Item>(
  items: AsyncGenerator<Item, void, undefined> | Generator<Item, void, undefined>,
  parallel: number,
  signal: AbortSignal,
  work: (item: Item, index: number, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  await withLinkedSignal([signal], async (linked, abort) => {
    let index = 0;
    const failures: unknown[] = [];
    const runner = async () => {
      try {
        while (failures.length === 0) {
          const next = await items.next();
          if (next.done === true) return;
          await work(next.value, index++, linked);
        }
      } catch (error) {
        failures.push(error);
        abort(asReason(error));
      }
    };
    await Promise.all(Array.from({ length: parallel }, runner));
    if (failures.length === 0) return;
    await items.return(undefined);
    throw failures[0];
  });
}

async function withLinkedSignal<Value>(
  signals: readonly (AbortSignal | undefined)[],
  work: (signal: AbortSignal, abort: (reason: ClipError) => void) => Promise<Value>,
): Promise<Value> {
  const controller = new AbortController();
  const links: { signal: AbortSignal; listener: () => void }[] = [];
  try {
    for (const signal of signals) {
      if (signal === undefined) continue;
      if (signal.aborted) throw asReason(signal.reason);
      const listener = () => controller.abort(asReason(signal.reason));
      signal.addEventListener("abort", listener, { once: true });
      links.push({ signal, listener });
    }
    return await work(controller.signal, (reason) => controller.abort(reason));
  } finally {
    for (const { signal, listener } of links) signal.removeEventListener("abort", listener);
  }
}

function asReason(reason: unknown): ClipError {
  if (isClipError(reason)) return reason;
  return new ClipError("ABORTED", "the caller gave up", { cause: reason });
}
