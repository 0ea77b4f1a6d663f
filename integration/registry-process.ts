/** Debian's docker-registry as a child process, for tests. */
import { spawn } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { tool } from "./harness/tools.ts";

/** A registry that answers at `host`. */
export interface RunningRegistry {
  /** `127.0.0.1:<port>` */
  host: string;
  stop(): Promise<void>;
}

/**
 * Starts a registry that keeps its data below `directory`, and waits until it answers.
 */
export async function startRegistry(options: {
  directory: string;
  /** Lines of `user:bcrypt hash`; absent: everybody may do everything. */
  htpasswd?: string;
}): Promise<RunningRegistry> {
  const { directory, htpasswd } = options;
  await mkdir(directory, { recursive: true });
  const port = await freePort();
  const passwords = join(directory, "htpasswd");
  if (htpasswd !== undefined) await writeFile(passwords, htpasswd);
  const config = {
    version: "0.1",
    log: { level: "error" },
    storage: { filesystem: { rootdirectory: join(directory, "data") }, delete: { enabled: true } },
    http: { addr: `127.0.0.1:${port}` },
    ...(htpasswd === undefined ? {} : { auth: { htpasswd: { realm: "test", path: passwords } } }),
  };
  const configPath = join(directory, "config.yml");
  await writeFile(configPath, JSON.stringify(config));
  const child = spawn(tool("docker-registry"), ["serve", configPath], { stdio: "ignore" });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
  const failed = new Promise<never>((_, reject) => child.once("error", reject));
  await Promise.race([failed, untilAnswering(`http://127.0.0.1:${port}/v2/`)]);
  return {
    host: `127.0.0.1:${port}`,
    stop: async () => {
      child.kill("SIGKILL");
      await ended;
    },
  };
}

async function untilAnswering(url: string): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    const answer = await fetch(url).catch(() => undefined);
    if (answer !== undefined) return;
    await sleep(50);
  }
  throw new Error(`no answer from ${url}`);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}
