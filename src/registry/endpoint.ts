/** Where a registry is reached: the host itself and its mirrors. */
/** How the other side of a TLS connection is checked, and how it may check this one. */
export interface TlsOptions {
  /** PEM files of authorities to trust besides the system's. */
  caFiles: string[];
  /** Client certificates: each a PEM file with both parts, or a certificate and a key. */
  clientFiles: string[][];
  skipVerify: boolean;
}

/** One place that answers for a registry. */
export interface Endpoint {
  /** Address below which the API stands: `https://host/v2`. */
  base: string;
  capabilities: { pull: boolean; resolve: boolean; push: boolean };
  tls: TlsOptions;
  /** Further headers for each request to this endpoint itself. Names in lower case. */
  headers: Record<string, string[]>;
}
