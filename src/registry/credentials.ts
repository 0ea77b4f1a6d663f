/** Credentials for registries. */

/** What proves to a registry who is asking. */
export type Credentials =
  | { kind: "password"; username: string; password: string }
  /** A refresh token for the registry's token service. */
  | { kind: "identity-token"; token: string }
  /** A token for the registry itself. */
  | { kind: "registry-token"; token: string };
