/** Waiting for what happens elsewhere. */
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

/** Waits until something holds, which it has to within half a minute. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
): Promise<void> {
  for (let tries = 0; !(await condition()); tries++) {
    if (tries === 600) assert.fail(`${what} took too long`);
    await sleep(50);
  }
}
