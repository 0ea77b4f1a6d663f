/**
 * How requests of the S3 client travel. The client's own way takes nearly twice the processor's time
 * for a range of 1 MiB, as long as little of it has been compiled (measured in decision 11).
 */
import { Agent, type Dispatcher } from "undici";

/** How patient to be. */
export interface S3HttpOptions {
  /** Connections to one server. */
  connections: number;
  connectTimeoutMs: number;
  /** Longest silence of a server. */
  silenceMs: number;
}

/** What the S3 client sends; its `HttpRequest`. */
interface S3Request {
  method: string;
  protocol: string;
  hostname: string;
  port?: number;
  path: string;
  query?: Record<string, string | string[] | null>;
  headers: Record<string, string>;
  body?: Dispatcher.DispatchOptions["body"];
}

const keepAliveMs = 30_000;

/** A `requestHandler` for the client, which closes it when it is destroyed itself. */
export function s3Http({ connections, connectTimeoutMs, silenceMs }: S3HttpOptions) {
  const agent = new Agent({
    ...{ connections, allowH2: false, keepAliveTimeout: keepAliveMs },
    ...{ connectTimeout: connectTimeoutMs, headersTimeout: silenceMs, bodyTimeout: silenceMs },
  });
  return {
    metadata: { handlerProtocol: "http/1.1" },
    handle: async (request: S3Request, { abortSignal }: { abortSignal?: AbortSignal } = {}) => {
      try {
        const { statusCode, headers, body } = await agent.request(asOptions(request, abortSignal));
        // Whoever reads it gets its error; it may also be given up unread.
        body.on("error", () => {});
        return { response: { statusCode, headers: joined(headers), body } };
      } catch (error) {
        throw asKnown(error);
      }
    },
    destroy: () => void agent.destroy(),
    updateHttpClientConfig: () => {},
    httpHandlerConfigs: () => ({}),
  };
}

function asOptions(request: S3Request, abortSignal?: AbortSignal) {
  const { method, protocol, hostname, port, path, query = {}, body = null } = request;
  // This client cannot wait for a server to ask for a body.
  const kept = Object.entries(request.headers).filter(([name]) => !/^expect$/i.test(name));
  const headers = Object.fromEntries(kept);
  const host = port === undefined ? hostname : `${hostname}:${port}`;
  return {
    origin: `${protocol}//${host}`,
    path: path + queryOf(query),
    method,
    ...{ headers, body },
    ...(abortSignal === undefined ? {} : { signal: abortSignal }),
  };
}

/** As it was signed: RFC 3986 escapes more than `encodeURIComponent` does. */
function queryOf(query: Record<string, string | string[] | null>): string {
  const pairs = Object.entries(query).flatMap(([name, value]) => {
    if (value === null) return [escaped(name)];
    return [value].flat().map((one) => `${escaped(name)}=${escaped(one)}`);
  });
  return pairs.length === 0 ? "" : `?${pairs.join("&")}`;
}

function escaped(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function joined(headers: Record<string, string | string[] | undefined>): Record<string, string> {
  const entries = Object.entries(headers);
  return Object.fromEntries(entries.map(([name, value = ""]) => [name, [value].flat().join(", ")]));
}

/** Failures that may pass, by the names at which the client sends a request again. */
function asKnown(error: unknown): unknown {
  if (!(error instanceof Error) || !("code" in error)) return error;
  const code = String(error.code);
  if (code === "UND_ERR_SOCKET") {
    return Object.assign(new Error(error.message, { cause: error }), { code: "ECONNRESET" });
  }
  if (/^UND_ERR_\w+_TIMEOUT$/.test(code)) {
    return Object.assign(new Error(error.message, { cause: error }), { name: "TimeoutError" });
  }
  return error;
}
