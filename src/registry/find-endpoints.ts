/** Which endpoints answer for a registry: from the configuration and the hosts directory. */
import type { Endpoint, TlsOptions } from "./endpoint.ts";
import { baseUrl, readHostsFile } from "./hosts-file.ts";
import { hostPort, isLoopback } from "./reference.ts";

/** What an operator may say about one registry. */
export interface HostOptions {
  /** Speak HTTP instead of HTTPS. */
  plainHttp?: boolean;
  skipVerify?: boolean;
  /** PEM file of authorities to trust besides the system's. */
  caFile?: string | undefined;
  /** Base URLs that are asked before the host itself, in order. */
  mirrors?: readonly string[];
}

/** Where {@link findEndpoints} looks. */
export interface EndpointOptions {
  /** By host as it stands in image names, with its port. Goes before the hosts directory. */
  hosts?: Readonly<Record<string, HostOptions>>;
  /** containerd's hosts directory; absent: none. */
  hostsDirectory?: string;
}

/**
 * The endpoints to ask for what `host` holds, in order; the host itself comes last. Loopback hosts
 * speak plain HTTP unless they are configured for TLS or have port 443, as with containerd.
 * @throws ClipError CONFIG_INVALID when the host's file in the hosts directory is wrong
 */
export async function findEndpoints(host: string, options: EndpointOptions): Promise<Endpoint[]> {
  const configured = options.hosts?.[host];
  const file =
    options.hostsDirectory === undefined
      ? undefined
      : await readHostsFile(options.hostsDirectory, host);
  const mirrors = (configured?.mirrors ?? []).map((url) => {
    const base = baseUrl(url);
    return {
      base,
      capabilities: { pull: true, resolve: true, push: false },
      tls: tlsOf(options.hosts?.[new URL(base).host]),
      headers: {},
    };
  });
  const server = configured === undefined ? file?.server : undefined;
  const endpoints = [...mirrors, ...(file?.mirrors ?? []), server ?? serverOf(host, configured)];
  return endpoints.filter(
    ({ base }, index) => endpoints.findIndex((other) => other.base === base) === index,
  );
}

function serverOf(host: string, options: HostOptions | undefined): Endpoint {
  const tls = tlsOf(options);
  const wantsTls = tls.skipVerify || tls.caFiles.length > 0 || hostPort(host) === "443";
  const plain = options?.plainHttp === true || (isLoopback(host) && !wantsTls);
  const address = host === "docker.io" ? "registry-1.docker.io" : host;
  return {
    base: baseUrl(`${plain ? "http" : "https"}://${address}`),
    capabilities: { pull: true, resolve: true, push: true },
    tls,
    headers: {},
  };
}

function tlsOf(options: HostOptions | undefined): TlsOptions {
  return {
    caFiles: options?.caFile === undefined ? [] : [options.caFile],
    clientFiles: [],
    skipVerify: options?.skipVerify ?? false,
  };
}
