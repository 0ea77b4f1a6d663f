/** Real servers for the content cache: an S3 gateway and Redis, for tests. */
import { mkdirSync } from "node:fs";
import { createConnection, createServer } from "node:net";
import path from "node:path";
import { run, Service } from "./harness/command.ts";
import { tool, toolEnvironment } from "./harness/tools.ts";

/** Credentials of the root user of {@link startS3}. */
export const s3Credentials = { accessKeyId: "clip-test", secretAccessKey: "clip-test-secret" };

/** A server that listens on `port` of 127.0.0.1. */
export interface TestServer {
  port: number;
  service: Service;
}

/** A server that can be started again, after its end, as it was. */
export interface RedisServer extends TestServer {
  again(): Promise<RedisServer>;
}

/**
 * Starts versitygw, an S3 server over a directory, with the bucket `clip`. Objects are files below
 * `directory/data/clip`. `bucket.localhost` names work as well as paths.
 */
export async function startS3(directory: string, port?: number): Promise<TestServer> {
  const data = path.join(directory, "data");
  mkdirSync(path.join(data, "clip"), { recursive: true });
  const chosen = port ?? (await freePort());
  const service = await Service.start({
    name: "versitygw",
    command: tool("versitygw"),
    args: [
      "--port",
      `127.0.0.1:${chosen}`,
      "--access",
      s3Credentials.accessKeyId,
      "--secret",
      s3Credentials.secretAccessKey,
      "--virtual-domain",
      "localhost",
      // As other S3 servers do; it does not by itself.
      "--keep-alive",
      "--quiet",
      "posix",
      data,
    ],
    env: toolEnvironment(),
    logFile: path.join(directory, "versitygw.log"),
    isReady: () => isListening(chosen),
  });
  return { port: chosen, service };
}

/** Starts Redis with `args` after the usual ones. It keeps nothing on disk. */
export async function startRedis(
  directory: string,
  args: readonly string[] = [],
  port?: number,
): Promise<RedisServer> {
  mkdirSync(directory, { recursive: true });
  const chosen = port ?? (await freePort());
  const own = ["--dir", directory, ...args];
  const service = await Service.start({
    name: "redis-server",
    command: tool("redis-server"),
    args: [...`--port ${chosen} --bind 127.0.0.1 --appendonly no --save`.split(" "), "", ...own],
    env: toolEnvironment(),
    logFile: path.join(directory, "redis.log"),
    isReady: () => isListening(chosen),
  });
  return { port: chosen, service, again: () => startRedis(directory, args, chosen) };
}

/** Starts a Redis cluster of three nodes without replicas, with all slots served. */
export async function startRedisCluster(
  directory: string,
  args: readonly string[] = [],
): Promise<RedisServer[]> {
  const nodes: RedisServer[] = [];
  for (const name of ["a", "b", "c"]) {
    const port = await freePort();
    const clusterArgs = ["--cluster-enabled", "yes", "--cluster-port", `${await freePort()}`];
    nodes.push(await startRedis(path.join(directory, name), [...clusterArgs, ...args], port));
  }
  const addresses = nodes.map(({ port }) => `127.0.0.1:${port}`);
  const create = ["--cluster", "create", ...addresses, "--cluster-yes"];
  await run(tool("redis-cli"), create, { env: toolEnvironment() });
  const deadline = Date.now() + 30_000;
  for (const { port } of nodes) {
    while (!(await redisCommand(port, ["cluster", "info"])).includes("cluster_state:ok")) {
      if (Date.now() > deadline) throw new Error("the cluster did not come up");
    }
  }
  return nodes;
}

/** What Redis answers to a command. */
export function redisCommand(port: number, args: readonly string[]): Promise<string> {
  return run(tool("redis-cli"), ["-p", `${port}`, ...args], { env: toolEnvironment() });
}

/** A port that nothing listens on. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const address = server.address();
  await new Promise((resolve) => {
    server.close(resolve);
  });
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

function isListening(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection({ port, host: "127.0.0.1" });
    socket.once("connect", () => {
      socket.destroy();
      resolve(true);
    });
    socket.once("error", () => {
      resolve(false);
    });
  });
}
