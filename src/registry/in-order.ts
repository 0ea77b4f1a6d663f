/** Work that runs side by side and is handed out in order. */

/**
 * Yields the outcomes of `work(0)` to `work(count - 1)` in this order, with at most `parallel` of
 * them under way or waiting to be taken. When it ends early, the rest is aborted and awaited.
 */
export async function* inOrder<Value>(
  count: number,
  parallel: number,
  work: (index: number, signal: AbortSignal) => Promise<Value>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Value, void, undefined> {
  const controller = new AbortController();
  const linked =
    signal === undefined ? controller.signal : AbortSignal.any([signal, controller.signal]);
  const running: Promise<Value>[] = [];
  let next = 0;
  const start = () => {
    const promise = work(next++, linked);
    // Its failure is seen when its turn comes; until then it must not count as unhandled.
    promise.catch(() => {});
    running.push(promise);
  };
  try {
    while (next < Math.min(count, parallel)) start();
    for (let first = running.shift(); first !== undefined; first = running.shift()) {
      const value = await first;
      yield value;
      if (next < count) start();
    }
  } finally {
    controller.abort();
    await Promise.allSettled(running);
  }
}
