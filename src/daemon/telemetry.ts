/** The daemon's answers to those who want to know how it is doing. */
import { describeError } from "../base/errors.ts";
import type { Config } from "../config/schema.ts";
import type { Action } from "../telemetry/actions.ts";
import { jsonPage, TelemetryServer, textPage, type Page } from "../telemetry/server.ts";
import type { Log } from "../telemetry/log.ts";
import { createMetricsPage } from "./metrics.ts";
import { readNodeState, type NodeParts } from "./node-state.ts";
import { nodeStatus } from "./status.ts";
import { telemetrySocket } from "./telemetry-socket.ts";

/** What {@link openTelemetry} takes. */
export interface TelemetryOptions {
  config: Pick<Config, "root" | "state" | "address" | "metrics">;
  parts: NodeParts;
  /** What the owner of the socket may have done, by path. Default: nothing. */
  actions?: Readonly<Record<string, Action>>;
  log: Log;
}

/** Something that is being served. */
export interface Telemetry {
  close(): Promise<void>;
}

/**
 * Serves `/metrics`, `/status` and `/healthz`, and what is to be done. A daemon that cannot be asked still serves its
 * containers, so a failure is only logged.
 */
export async function openTelemetry(options: TelemetryOptions): Promise<Telemetry> {
  const { config, actions = {}, log } = options;
  const socketPath = telemetrySocket(config.state);
  const tcpAddress = config.metrics.address;
  const pages = pagesOf(options);
  let server: TelemetryServer | undefined;
  try {
    server = await TelemetryServer.open({ socketPath, pages, actions, log });
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
