/**
 * Things to be done that somebody asks for with a POST: an answer of JSON lines, which tells how far
 * it has come and ends with the outcome.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import { ClipError, describeError, isClipError, type ErrorCode } from "../base/errors.ts";
import { actionParametersBytesMax } from "../base/limits.ts";
import type { Log } from "./log.ts";

/** How an action is called. */
export interface ActionCall {
  /** What the request's body says, as JSON; undefined where there is none. */
  parameters: unknown;
  /** Fires when the client has gone, or the server closes. */
  signal: AbortSignal;
  /** Tells the client how far it has come. A client that does not listen misses some of it. */
  progress: (value: unknown) => void;
}

/** Does something, however long that takes; its result is what the client gets, as JSON. */
export type Action = (call: ActionCall) => Promise<unknown>;

/** One line of an answer. A result or an error is the last one; without it the answer was cut off. */
export type ActionLine =
  | { progress: unknown }
  | { result: unknown }
  | { error: { code?: ErrorCode; message: string; hint?: string } };

/** Actions by path, each of which runs once at a time. */
export class Actions {
  readonly #actions: Readonly<Record<string, Action>>;
  readonly #log: Log;
  readonly #closing = new AbortController();
  readonly #running = new Map<string, Promise<void>>();

  constructor(actions: Readonly<Record<string, Action>>, log: Log) {
    this.#actions = actions;
    this.#log = log;
  }

  has(path: string): boolean {
    return Object.hasOwn(this.#actions, path);
  }

  isRunning(path: string): boolean {
    return this.#running.has(path);
  }

  /** Does what is at `path` and answers. It must be there, and not be running. Never fails. */
  async run(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const running = this.#run(path, request, response).finally(() => this.#running.delete(path));
    this.#running.set(path, running);
    await running;
  }

  /** Ends what is being done. */
  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all(this.#running.values());
  }

  async #run(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const action = this.#actions[path];
    if (action === undefined) return;
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    const signal = AbortSignal.any([gone.signal, this.#closing.signal]);
    // For however long nothing is to be told.
    request.socket.setTimeout(0);
    const write = (line: ActionLine) => response.write(`${JSON.stringify(line)}\n`);
    response.writeHead(200, {
      "content-type": "application/x-ndjson",
      "cache-control": "no-store",
      connection: "close",
    });
    response.flushHeaders();
    try {
      const parameters = await readParameters(request);
      const progress = (value: unknown) => {
        if (!response.writableNeedDrain && !signal.aborted) write({ progress: value });
      };
      this.#log.info({ path }, "an action begins");
      const result = await action({ parameters, signal, progress });
      if (signal.aborted) throw new ClipError("ABORTED", "the daemon stops");
      write({ result: result ?? null });
    } catch (error) {
      if (!signal.aborted) {
        this.#log.error({ path, error: describeError(error) }, "an action failed");
      }
      write({ error: describe(error) });
    }
    response.end();
  }
}

async function readParameters(request: IncomingMessage): Promise<unknown> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > actionParametersBytesMax) {
      throw new ClipError(
        "LIMIT_EXCEEDED",
        `more than ${actionParametersBytesMax} bytes were sent`,
      );
    }
    parts.push(part);
  }
  if (bytes === 0) return undefined;
  try {
    return JSON.parse(Buffer.concat(parts).toString("utf8"));
  } catch (error) {
    throw new ClipError("ARGUMENT_INVALID", "the parameters are not JSON", { cause: error });
  }
}

function describe(error: unknown): { code?: ErrorCode; message: string; hint?: string } {
  const message = describeError(error);
  if (!isClipError(error)) return { message };
  const { code, hint } = error;
  return hint === undefined ? { code, message } : { code, message, hint };
}
