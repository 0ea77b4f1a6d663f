/** Plain functions as gRPC handlers: abort signals, statuses, and knowing which calls are open. */
import { once } from "node:events";
import {
  status,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
} from "@grpc/grpc-js";
import { ClipError, describeError, isClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { grpcStatusOf, type GrpcStatus } from "./grpc-status.ts";

/** What a handler learns besides the request. */
export interface CallContext {
  /** Fires when the caller goes away, and when the server cannot wait any longer. */
  signal: AbortSignal;
  metadata: Metadata;
}

/** Told of each call that has ended. */
export type CallObserver = (method: string, code: status, milliseconds: number) => void;

/** The part that all gRPC calls have. */
interface AnyCall {
  metadata: Metadata;
  on(event: "cancelled", listener: () => void): unknown;
}

/** Makes handlers, and knows which of their calls are open. */
export class GrpcHandlers {
  readonly #log: Log;
  readonly #observe: CallObserver;
  readonly #open = new Set<Promise<void>>();
  readonly #closing = new AbortController();

  constructor(log: Log, observe: CallObserver) {
    this.#log = log;
    this.#observe = observe;
  }

  /** Handles calls with one answer. */
  unary<Request, Response>(
    method: string,
    handle: (request: Request, context: CallContext) => Promise<Response> | Response,
  ): handleUnaryCall<Request, Response> {
    return (call, callback) => {
      this.#track(method, call, async (context) => {
        try {
          callback(null, await handle(call.request, context));
          return status.OK;
        } catch (error) {
          const failure = this.#statusOf(method, error);
          callback(failure);
          return failure.code;
        }
      });
    };
  }

  /** Handles calls with any number of answers; each is made when those before it are taken. */
  streaming<Request, Response>(
    method: string,
    handle: (request: Request, context: CallContext) => Iterable<Response>,
  ): handleServerStreamingCall<Request, Response> {
    return (call) => {
      this.#track(method, call, async (context) => {
        try {
          for (const response of handle(call.request, context)) {
            if (!call.write(response)) await once(call, "drain", { signal: context.signal });
          }
          call.end();
          return status.OK;
        } catch (error) {
          const failure = this.#statusOf(
            method,
            context.signal.aborted ? new ClipError("ABORTED", "the caller gave up") : error,
          );
          call.emit("error", failure);
          return failure.code;
        }
      });
    };
  }

  /** Aborts the open calls, and every later one. */
  abort(): void {
    this.#closing.abort();
  }

  /** Waits until no call is open. */
  async idle(): Promise<void> {
    while (this.#open.size > 0) await Promise.all(this.#open);
  }

  #track(method: string, call: AnyCall, work: (context: CallContext) => Promise<status>): void {
    const started = performance.now();
    const gone = new AbortController();
    call.on("cancelled", () => gone.abort());
    const signal = AbortSignal.any([gone.signal, this.#closing.signal]);
    const running = (async () => {
      const code = await work({ signal, metadata: call.metadata });
      this.#observe(method, code, performance.now() - started);
    })().finally(() => this.#open.delete(running));
    this.#open.add(running);
  }

  #statusOf(method: string, error: unknown): GrpcStatus {
    // What nobody foresaw is a defect in clip, so the log gets all that is known of it.
    const fields = { method, error: describeError(error) };
    if (isClipError(error)) {
      this.#log.debug({ ...fields, code: error.code }, "call failed");
    } else {
      const stack = error instanceof Error ? error.stack : undefined;
      this.#log.error({ ...fields, stack }, "call failed unexpectedly");
    }
    return grpcStatusOf(error);
  }
}
