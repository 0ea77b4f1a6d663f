/** The registry client, as the configuration wants it. */
import type { Config } from "../config/schema.ts";
import { RegistryClient } from "../registry/client.ts";
import type { Log } from "../telemetry/log.ts";

/** Makes the client; `plainHttp` names hosts that speak HTTP besides those configured to. */
export function openRegistry(
  config: Config,
  log: Log,
  plainHttp: readonly string[] = [],
): RegistryClient {
  const hosts = Object.fromEntries(config.registry.host.map(({ name, ...host }) => [name, host]));
  for (const name of plainHttp) {
    hosts[name] = { skipVerify: false, mirrors: [], ...hosts[name], plainHttp: true };
  }
  return new RegistryClient({
    hosts,
    hostsDirectory: config.containerd.hostsDirectory,
    dockerConfig: config.registry.dockerConfig,
    timeoutMs: config.registry.timeoutMs,
    idleTimeoutMs: config.registry.idleTimeoutMs,
    bytesPerSecondMin: config.registry.bytesPerSecondMin,
    retries: config.registry.retries,
    log,
  });
}
