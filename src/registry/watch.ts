/** Watches every request to registries: counts it, and gives up answers that come too slowly. */
import type { Dispatcher } from "undici";
import { faultOf, SlowAnswerError } from "./http.ts";
import { increment, type HostCounts, type RegistryCounters } from "./registry-counters.ts";

/** How slowly the body of an answer may come. */
export interface PaceLimits {
  /** Fewest bytes a second, on average over a window; 0: no limit. */
  bytesPerSecondMin: number;
  windowMs: number;
}

/** An interceptor for a dispatcher of undici; see the module. */
export function watched(
  counters: RegistryCounters,
  limits: PaceLimits,
): (dispatch: Dispatcher["dispatch"]) => Dispatcher["dispatch"] {
  return (dispatch) => (options, handler) => {
    const counts = counters.of(hostOf(options.origin));
    return dispatch(options, new WatchingHandler(handler, counts, limits));
  };
}

function hostOf(origin: string | URL | undefined): string {
  return origin === undefined ? "" : new URL(origin).host;
}

type Handler = Dispatcher.DispatchHandler;
type Controller = Dispatcher.DispatchController;
type Arguments<Name extends keyof Handler> = Parameters<NonNullable<Handler[Name]>>;

class WatchingHandler implements Handler {
  readonly #handler: Handler;
  readonly #counts: HostCounts;
  readonly #limits: PaceLimits;
  #timer: NodeJS.Timeout | undefined;
  #bytesInWindow = 0;
  /** In this window whoever reads the body made it wait. */
  #wasHeld = false;

  constructor(handler: Handler, counts: HostCounts, limits: PaceLimits) {
    this.#handler = handler;
    this.#counts = counts;
    this.#limits = limits;
  }

  onRequestStart(...args: Arguments<"onRequestStart">): void {
    this.#handler.onRequestStart?.(...args);
  }

  onRequestUpgrade(...args: Arguments<"onRequestUpgrade">): void {
    this.#handler.onRequestUpgrade?.(...args);
  }

  onResponseStart(...args: Arguments<"onResponseStart">): void {
    const [controller, status] = args;
    if (status >= 200) {
      increment(this.#counts.answers, status);
      this.#watch(controller);
    }
    this.#handler.onResponseStart?.(...args);
  }

  onResponseData(...args: Arguments<"onResponseData">): void {
    const [controller, chunk] = args;
    this.#counts.bytes += chunk.length;
    this.#bytesInWindow += chunk.length;
    this.#handler.onResponseData?.(...args);
    this.#wasHeld ||= controller.paused;
  }

  onResponseEnd(...args: Arguments<"onResponseEnd">): void {
    clearTimeout(this.#timer);
    this.#handler.onResponseEnd?.(...args);
  }

  onResponseError(...args: Arguments<"onResponseError">): void {
    clearTimeout(this.#timer);
    const fault = faultOf(args[1]);
    if (fault !== undefined) increment(this.#counts.faults, fault);
    this.#handler.onResponseError?.(...args);
  }

  onRequestSent(): void {
    this.#handler.onRequestSent?.();
  }

  #watch(controller: Controller): void {
    const { bytesPerSecondMin, windowMs } = this.#limits;
    if (bytesPerSecondMin === 0) return;
    const bytesMin = (bytesPerSecondMin * windowMs) / 1000;
    this.#timer = setTimeout(() => {
      // Silence has a limit of its own.
      const isSlow = this.#bytesInWindow > 0 && this.#bytesInWindow < bytesMin;
      if (isSlow && !this.#wasHeld && !controller.paused) {
        controller.abort(new SlowAnswerError(this.#bytesInWindow, windowMs));
        return;
      }
      this.#bytesInWindow = 0;
      this.#wasHeld = controller.paused;
      this.#timer?.refresh();
    }, windowMs);
  }
}
