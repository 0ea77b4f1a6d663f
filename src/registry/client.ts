/** The client of OCI registries (OCI distribution spec 1.1; Docker's registry API v2). */
import type { Digest } from "../base/digest.ts";
import { ClipError } from "../base/errors.ts";
import type { Log } from "../telemetry/log.ts";
import { Authorizer } from "./authorizer.ts";
import { BlobReader } from "./blob-reader.ts";
import { Connections } from "./connections.ts";
import { fetchManifest, fetchReferrers, fetchSmallBlob, hasBlob, type Scene } from "./content.ts";
import { DockerConfig } from "./docker-config.ts";
import type { Endpoint } from "./endpoint.ts";
import { type EndpointOptions, findEndpoints } from "./find-endpoints.ts";
import type { Descriptor, Manifest } from "./manifest.ts";
import { type NewManifest, pushBlob, pushManifest } from "./push.ts";
import type { Reference, Repository } from "./reference.ts";
import { RegistryCounters } from "./registry-counters.ts";
import { RegistryHost } from "./registry-host.ts";
import { Session } from "./session.ts";

/** How registries are reached. */
export interface RegistryOptions extends EndpointOptions {
  /** Docker's configuration file; by default `$DOCKER_CONFIG/config.json` or `~/.docker/…`. */
  dockerConfig?: string | undefined;
  /** Longest wait for a connection, and for the head of an answer. Default 10 s. */
  timeoutMs?: number;
  /** Longest silence in the body of an answer. Default 30 s. */
  idleTimeoutMs?: number;
  /** Fewest bytes a second of a body, on average over `idleTimeoutMs`; 0: no limit. Default 1024. */
  bytesPerSecondMin?: number;
  /** How often a request is tried again after a fault that may pass. Default 5. */
  retries?: number;
  log: Log;
}

// Hosts files may be changed at any time; how long what they said is believed.
const endpointsMs = 10_000;

/** Talks to registries; owns the connections to them and the tokens they gave. */
export class RegistryClient {
  /** What has been asked, and what came of it. */
  readonly counters = new RegistryCounters();
  readonly #options: RegistryOptions;
  readonly #retries: number;
  readonly #connections: Connections;
  readonly #dockerConfig: DockerConfig;
  readonly #closing = new AbortController();
  readonly #hosts = new Map<string, RegistryHost>();
  // By what an endpoint is, so that tokens survive a new look into the hosts directory.
  readonly #sessions = new Map<string, Promise<Session>>();

  constructor(options: RegistryOptions) {
    const { timeoutMs = 10_000, idleTimeoutMs = 30_000, retries = 5 } = options;
    const { bytesPerSecondMin = 1024 } = options;
    this.#options = options;
    this.#retries = retries;
    this.#connections = new Connections({
      ...{ timeoutMs, idleTimeoutMs, bytesPerSecondMin },
      counters: this.counters,
    });
    this.#dockerConfig = new DockerConfig(options.dockerConfig);
  }

  /**
   * The manifest or index that an image name stands for.
   * @throws ClipError REGISTRY_*, ABORTED, CLOSED, CONFIG_INVALID, as all methods here
   */
  resolve(reference: Reference, signal?: AbortSignal): Promise<Manifest> {
    const target = reference.digest ?? reference.tag ?? "latest";
    return this.manifest(reference.repository, target, signal);
  }

  /** The manifest or index with this digest or tag. */
  manifest(repository: Repository, digestOrTag: string, signal?: AbortSignal): Promise<Manifest> {
    return fetchManifest(this.#scene(repository, signal), digestOrTag);
  }

  /** What refers to the manifest `digest` and has this artifact type. */
  referrers(
    repository: Repository,
    digest: Digest,
    artifactType: string,
    signal?: AbortSignal,
  ): Promise<Descriptor[]> {
    return fetchReferrers(this.#scene(repository, signal), digest, artifactType);
  }

  /** Whether the repository holds this blob. */
  has(repository: Repository, digest: Digest, signal?: AbortSignal): Promise<boolean> {
    return hasBlob(this.#scene(repository, signal), digest);
  }

  /** A small blob as a whole, such as an image's config, matching its digest. */
  smallBlob(repository: Repository, digest: Digest, signal?: AbortSignal): Promise<Buffer> {
    return fetchSmallBlob(this.#scene(repository, signal), digest);
  }

  /** A reader of a blob whose size is known. Asks nobody before it is read. */
  blob(repository: Repository, digest: Digest, size: number): BlobReader {
    const host = this.#host(repository.host);
    return new BlobReader({ repository, digest, size, host, retries: this.#retries });
  }

  /** Uploads a blob unless the repository has it. */
  pushBlob(repository: Repository, bytes: Buffer, signal?: AbortSignal): Promise<Digest> {
    return pushBlob(this.#scene(repository, signal), bytes);
  }

  /** Writes a manifest, and makes it known as a referrer of what it refers to. */
  pushManifest(
    repository: Repository,
    manifest: NewManifest,
    signal?: AbortSignal,
  ): Promise<Digest> {
    return pushManifest(this.#scene(repository, signal), manifest);
  }

  /** Ends every request and closes the connections. */
  async close(): Promise<void> {
    this.#closing.abort(new ClipError("CLOSED", "the registry client is closed"));
    await this.#connections.close();
  }

  #scene(repository: Repository, signal: AbortSignal | undefined): Scene {
    const host = this.#host(repository.host);
    return { host, repository, retries: this.#retries, signal };
  }

  #host(name: string): RegistryHost {
    let host = this.#hosts.get(name);
    if (host === undefined) {
      host = new RegistryHost(name, this.#finder(name), this.#options.log);
      this.#hosts.set(name, host);
    }
    return host;
  }

  #finder(name: string): () => Promise<Session[]> {
    let found: Promise<Session[]> | undefined;
    let foundAt = 0;
    return () => {
      if (found === undefined || performance.now() - foundAt > endpointsMs) {
        foundAt = performance.now();
        found = findEndpoints(name, this.#options).then((endpoints) =>
          Promise.all(endpoints.map((endpoint) => this.#session(endpoint))),
        );
        found.catch(() => (found = undefined));
      }
      return found;
    };
  }

  #session(endpoint: Endpoint): Promise<Session> {
    const key = JSON.stringify(endpoint);
    let session = this.#sessions.get(key);
    if (session === undefined) {
      session = this.#openSession(endpoint);
      this.#sessions.set(key, session);
      session.catch(() => this.#sessions.delete(key));
    }
    return session;
  }

  async #openSession(endpoint: Endpoint): Promise<Session> {
    const dispatcher = await this.#connections.dispatcher(endpoint.tls);
    const { host } = new URL(endpoint.base);
    const authorizer = new Authorizer({
      base: endpoint.base,
      credentials: (signal) => this.#dockerConfig.credentials(host, signal),
      dispatcher,
      retries: this.#retries,
      closing: this.#closing.signal,
    });
    return new Session({ endpoint, dispatcher, authorizer, log: this.#options.log });
  }
}
