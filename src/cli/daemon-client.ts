/** Asking the daemon of this node, on the socket in its state directory. */
import { once } from "node:events";
import { request, type IncomingMessage } from "node:http";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { ClipError, isClipError } from "../base/errors.ts";
import type { ActionLine } from "../telemetry/actions.ts";

const answerTimeoutMs = 15_000;
const answerBytesMax = 64 * 1024 * 1024;

/**
 * One of the daemon's pages, which is JSON.
 * @throws ClipError SYSTEM_CALL when no daemon answers, TIMEOUT
 */
export async function askDaemon<Answer>(socketPath: string, path: string): Promise<Answer> {
  const signal = AbortSignal.timeout(answerTimeoutMs);
  try {
    const response = await send(socketPath, path, { signal });
    const body = await text(response);
    if (response.statusCode === 200 && body.length < answerBytesMax) return JSON.parse(body);
    throw refusal(response, body);
  } catch (error) {
    throw asClientError(error, socketPath, signal);
  }
}

/** How the daemon is to do something. */
export interface ActionOptions {
  /** Sent as JSON. */
  parameters?: unknown;
  /** Told of each line of progress. */
  onProgress?: (value: unknown) => void;
}

/**
 * Has the daemon do something and waits for its end, however long that takes; if this process ends
 * before, the daemon gives it up.
 * @throws ClipError SYSTEM_CALL when no daemon answers or it goes away, TIMEOUT when it does not
 *   begin, and what it failed with
 */
export async function orderDaemon<Result>(
  socketPath: string,
  path: string,
  { parameters, onProgress }: ActionOptions = {},
): Promise<Result> {
  const begun = new AbortController();
  const timer = setTimeout(() => begun.abort(), answerTimeoutMs);
  try {
    const body = parameters === undefined ? "" : JSON.stringify(parameters);
    const response = await send(socketPath, path, { method: "POST", body, signal: begun.signal });
    clearTimeout(timer);
    if (response.statusCode !== 200) throw refusal(response, await text(response));
    for await (const line of createInterface({ input: response })) {
      const told = JSON.parse(line) as ActionLine;
      if ("progress" in told) onProgress?.(told.progress);
      else if ("result" in told) return told.result as Result;
      else throw failure(told.error);
    }
    throw new ClipError("SYSTEM_CALL", "the daemon has ended before it was done", {
      hint: "its log says why; ask again",
    });
  } catch (error) {
    throw asClientError(error, socketPath, begun.signal);
  } finally {
    clearTimeout(timer);
  }
}

/** Whether an order has failed because nobody listens there. */
export function isUnreachable(error: unknown): boolean {
  return isClipError(error) && error.context["unreachable"] === true;
}

interface Request {
  method?: "POST";
  body?: string;
  signal: AbortSignal;
}

async function send(
  socketPath: string,
  path: string,
  { method, body, signal }: Request,
): Promise<IncomingMessage> {
  const sent = request({ socketPath, path, signal, ...(method === undefined ? {} : { method }) });
  sent.end(body);
  const [response] = (await once(sent, "response")) as [IncomingMessage];
  return response;
}

function refusal({ statusCode }: IncomingMessage, body: string): ClipError {
  if (statusCode === 409) return new ClipError("SYSTEM_CALL", `the daemon says: ${body.trim()}`);
  return new ClipError("SYSTEM_CALL", `the daemon answered ${statusCode}`, {
    hint: "its log says why",
  });
}

function failure({ code, message, hint }: Extract<ActionLine, { error: object }>["error"]) {
  return new ClipError(code ?? "SYSTEM_CALL", message, hint === undefined ? {} : { hint });
}

function asClientError(error: unknown, socketPath: string, signal: AbortSignal): ClipError {
  if (error instanceof ClipError) return error;
  if (signal.aborted) {
    return new ClipError("TIMEOUT", `the daemon on ${socketPath} did not answer`, {
      hint: "it may be overloaded or stopped by a signal; its log may tell",
    });
  }
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (code === "ECONNRESET") {
    return new ClipError("SYSTEM_CALL", "the daemon has ended before it was done", {
      hint: "its log says why; ask again",
    });
  }
  return new ClipError("SYSTEM_CALL", `no clip daemon answers on ${socketPath}`, {
    hint:
      code === "EACCES"
        ? "only the user that the daemon runs as may ask it"
        : "is it running? name its state directory with --state, or its configuration with --config",
    cause: error,
    context: { unreachable: code === "ECONNREFUSED" || code === "ENOENT" },
  });
}
