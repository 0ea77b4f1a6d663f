/** Prometheus metrics whose values are read when somebody asks for them, and not kept twice. */
import { collectDefaultMetrics, Registry, type Metric } from "prom-client";
import { totalOf, type LatencyCounts } from "./latencies.ts";

type Labels = Readonly<Record<string, string>>;

/** The value of a metric for some labels. */
export interface Sample {
  labels: Labels;
  value: number;
}

/** Durations for some labels. */
export interface LatencySample {
  labels: Labels;
  latencies: LatencyCounts;
}

/** What prom-client's registry asks of a metric. */
interface ReadMetric {
  name: string;
  get(): Promise<{
    name: string;
    help: string;
    type: "counter" | "gauge" | "histogram";
    values: { metricName?: string; labels: Labels; value: number }[];
  }>;
}

/** How precisely the lag of the event loop is known; looking costs a timer. */
const eventLoopPrecisionMs = 100;

/** A page of metrics that are read from `State`. */
export class MetricsPage<State> {
  readonly #registry = new Registry();
  #state: State | undefined;

  /** Type of the page: Prometheus's text format. */
  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Names of the metrics in the order in which they were added. */
  get names(): string[] {
    return this.#registry.getMetricsAsArray().map(({ name }) => name);
  }

  /** Adds a number that only grows. */
  counter(name: string, help: string, read: (state: State) => number | readonly Sample[]): void {
    this.#add("counter", name, help, (state) => samplesOf(read(state)));
  }

  /** Adds a number that goes up and down. */
  gauge(name: string, help: string, read: (state: State) => number | readonly Sample[]): void {
    this.#add("gauge", name, help, (state) => samplesOf(read(state)));
  }

  /** Adds durations, in seconds. */
  histogram(name: string, help: string, read: (state: State) => readonly LatencySample[]): void {
    this.#add("histogram", name, help, (state) =>
      read(state).flatMap((sample) => histogramValues(name, sample)),
    );
  }

  /** Adds what Prometheus expects of every process, and Node's own: `process_…`, `nodejs_…`. */
  processMetrics(): void {
    collectDefaultMetrics({
      register: this.#registry,
      eventLoopMonitoringPrecision: eventLoopPrecisionMs,
    });
  }

  /** The page for a state. */
  async render(state: State): Promise<string> {
    this.#state = state;
    return this.#registry.metrics();
  }

  #add(
    type: "counter" | "gauge" | "histogram",
    name: string,
    help: string,
    read: (state: State) => { metricName?: string; labels: Labels; value: number }[],
  ): void {
    const metric: ReadMetric = {
      name,
      get: async () => {
        const values = this.#state === undefined ? [] : read(this.#state);
        return { name, help, type, values };
      },
    };
    // Its declared type has methods that only callers use; histograms of prom-client cannot be
    // given counts that were made elsewhere.
    this.#registry.registerMetric(metric as unknown as Metric);
  }
}

function samplesOf(read: number | readonly Sample[]): Sample[] {
  return typeof read === "number" ? [{ labels: {}, value: read }] : [...read];
}

function histogramValues(name: string, { labels, latencies }: LatencySample) {
  const { boundsMs, counts, milliseconds } = latencies;
  let below = 0;
  const buckets = boundsMs.map((bound, at) => {
    below += counts[at] ?? 0;
    return {
      metricName: `${name}_bucket`,
      labels: { ...labels, le: `${bound / 1000}` },
      value: below,
    };
  });
  const total = totalOf(latencies);
  return [
    ...buckets,
    { metricName: `${name}_bucket`, labels: { ...labels, le: "+Inf" }, value: total },
    { metricName: `${name}_sum`, labels, value: milliseconds / 1000 },
    { metricName: `${name}_count`, labels, value: total },
  ];
}
