/** containerd's gRPC services, from the definitions in `protos/containerd`. */
import { fileURLToPath } from "node:url";
import type { ServiceDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { assert } from "../base/errors.ts";

const directory = fileURLToPath(new URL("../../protos/containerd", import.meta.url));

/**
 * The service `name` of `file`. Field names are in camel case, absent fields have their default
 * (null for messages), enums are their names, 64-bit integers are decimal strings.
 */
export function loadService(file: string, name: string): ServiceDefinition {
  const definitions = loadSync(file, {
    includeDirs: [directory],
    keepCase: false,
    longs: String,
    enums: String,
    defaults: true,
  });
  const definition = definitions[name];
  // "format" is what tells messages and enums apart from services.
  assert(definition !== undefined && !("format" in definition), `${file} has no service ${name}`);
  return definition;
}

/** A google.protobuf.Timestamp as it is decoded. */
export interface Timestamp {
  seconds: string | number;
  nanos: number;
}

/** Nanoseconds since 1970 as a Timestamp. */
export function timestampFromNanoseconds(nanoseconds: bigint): Timestamp {
  const second = 1_000_000_000n;
  // Timestamps before 1970 count their nanoseconds forwards too.
  const nanos = ((nanoseconds % second) + second) % second;
  return { seconds: ((nanoseconds - nanos) / second).toString(), nanos: Number(nanos) };
}

/** A Timestamp as nanoseconds since 1970; absent is 0. */
export function nanosecondsFromTimestamp(timestamp: Timestamp | null): bigint {
  if (timestamp === null) return 0n;
  return BigInt(timestamp.seconds) * 1_000_000_000n + BigInt(timestamp.nanos);
}
