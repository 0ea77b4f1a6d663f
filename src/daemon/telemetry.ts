/** The daemon's answers to those who want to know how it is doing. */
import { join } from "node:path";
import { describeError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import { jsonPage, TelemetryServer, textPage, type Page } from "../telemetry/server.ts";
import type { Log } from "../telemetry/log.ts";
import { createMetricsPage } from "./metrics.ts";
import { readNodeState, type NodeParts } from "./node-state.ts";
import { nodeStatus } from "./status.ts";

/** What {@link openTelemetry} takes. */
export interface TelemetryOptions {
  config: Pick<Config, "root" | "state" | "address" | "metrics">;
  parts: NodeParts;
  log: Log;
}

/** Something that is being served. */
export interface Telemetry {
  close(): Promise<void>;
}

/** The unix socket of a daemon whose state directory this is. */
export function telemetrySocket(state: string): string {
  return join(state, "metrics.sock");
}

/**
 * Serves `/metrics`, `/status` and `/healthz`. A daemon that cannot be asked still serves its
 * containers, so a failure is only logged.
 */
export async function openTelemetry(options: TelemetryOptions): Promise<Telemetry> {
  const { config, log } = options;
  const socketPath = telemetrySocket(config.state);
  const tcpAddress = config.metrics.address;
  const pages = pagesOf(options);
  let server: TelemetryServer | undefined;
  try {
    server = await TelemetryServer.open({ socketPath, pages, log });
    if (tcpAddress !== undefined) {
      log.info({ address: await server.listen(tcpAddress) }, "metrics and status are served");
    }
  } catch (error) {
    const address = server === undefined ? socketPath : tcpAddress;
    log.error({ address, error: describeError(error) }, "metrics and status are not served");
  }
  return { close: async () => server?.close() };
}

function pagesOf({ parts, config }: TelemetryOptions): Record<string, () => Promise<Page>> {
  const metrics = createMetricsPage();
  return {
    "/metrics": async () => ({
      contentType: metrics.contentType,
      body: await metrics.render(await readNodeState(parts)),
    }),
    "/status": async () => jsonPage(nodeStatus(await readNodeState(parts), config)),
    "/healthz": async () => textPage(200, "ok"),
  };
}
