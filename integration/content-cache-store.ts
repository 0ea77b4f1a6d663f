/**
 * A node that stores one object in a shared directory, for tests: `node content-cache-store.ts
 * DIRECTORY KEY SIZE [PAUSE_AT]` prints the outcome; at PAUSE_AT bytes it says so and waits for ever.
 */
import { isContentKey } from "../src/cache/content/content-cache.ts";
import { openDirectoryCache } from "../src/cache/content/directory-cache.ts";
import { oddSource, testBytes } from "../src/cache/content/testing/content-cache-suite.ts";

const [directory = "", key = "", size = "0", pauseAt = "Infinity"] = process.argv.slice(2);
if (!isContentKey(key)) throw new Error(`not a key: ${key}`);
const keepAlive = setInterval(() => {}, 60_000);
const source = oddSource(testBytes(Number(size)), async (offset) => {
  if (offset < Number(pauseAt)) return;
  process.stdout.write("paused\n");
  await new Promise(() => {});
});
const cache = openDirectoryCache({ path: directory });
process.stdout.write(`${await cache.store(key, source)}\n`);
await cache.close();
clearInterval(keepAlive);
