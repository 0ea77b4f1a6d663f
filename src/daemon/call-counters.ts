/** Counts of what containerd asked for, and of what it had to do itself. */
import { status } from "@grpc/grpc-js";
import { Latencies } from "../telemetry/latencies.ts";

/** Calls of one method that ended with one code. */
export interface CallCount {
  method: string;
  /** gRPC's name of the code, such as `ALREADY_EXISTS`. */
  code: string;
  latencies: Latencies;
}

/** Counts calls and fallbacks; give its functions to the Snapshots service. */
export class CallCounters {
  readonly #calls = new Map<string, CallCount>();
  readonly #fallbacks = new Map<string, number>();

  /** Counts a call that has ended. */
  readonly onCall = (method: string, code: status, milliseconds: number): void => {
    const key = `${method} ${code}`;
    let count = this.#calls.get(key);
    if (count === undefined) {
      count = { method, code: status[code], latencies: new Latencies() };
      this.#calls.set(key, count);
    }
    count.latencies.add(milliseconds);
  };

  /** Counts a layer that is left to containerd to unpack. */
  readonly onFallback = (reason: string): void => {
    this.#fallbacks.set(reason, (this.#fallbacks.get(reason) ?? 0) + 1);
  };

  /** Calls by method and code. */
  get calls(): CallCount[] {
    return [...this.#calls.values()];
  }

  /** Fallbacks by reason. */
  get fallbacks(): ReadonlyMap<string, number> {
    return this.#fallbacks;
  }
}
