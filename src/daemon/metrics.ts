/** The node's metrics for Prometheus. `docs/metrics.md` explains them. */
import { version } from "../base/version.ts";
import type { SourceCounters } from "../layer/counters.ts";
import type { HostCounts } from "../registry/registry-counters.ts";
import { MetricsPage, type LatencySample, type Sample } from "../telemetry/metrics-page.ts";
import { diskReads, type NodeState } from "./node-state.ts";

/** The page of all metrics. */
export function createMetricsPage(): MetricsPage<NodeState> {
  const page = new MetricsPage<NodeState>();
  page.gauge("clip_build_info", "Version and way of mounting; always 1.", ({ mode }) => [
    { labels: { version, node: process.version, mode }, value: 1 },
  ]);
  addSnapshotMetrics(page);
  addReadMetrics(page);
  addTierMetrics(page);
  addRegistryMetrics(page);
  addLayerMetrics(page);
  addContentCacheMetrics(page);
  page.processMetrics();
  return page;
}

function addSnapshotMetrics(page: MetricsPage<NodeState>): void {
  page.histogram(
    "clip_grpc_call_duration_seconds",
    "Calls of the Snapshots service that have ended, by method and gRPC code.",
    ({ calls }) =>
      calls.map(({ method, code, latencies }) => ({ labels: { method, code }, latencies })),
  );
  page.counter(
    "clip_fallbacks_total",
    "Layers left to containerd to unpack although it asked for them as remote snapshots.",
    ({ fallbacks }) => [...fallbacks].map(([reason, value]) => ({ labels: { reason }, value })),
  );
  page.gauge(
    "clip_snapshots",
    "Snapshots by kind; remote: a layer that is served on demand.",
    (at) => byLabel("kind", at.snapshots),
  );
}

function addReadMetrics(page: MetricsPage<NodeState>): void {
  page.counter("clip_fuse_requests_total", "Requests of the kernel by opcode.", (at) =>
    byLabel("opcode", at.fuseRequests),
  );
  page.counter(
    "clip_local_reads_total",
    "Reads that FUSE threads answered from the disk cache.",
    (at) => diskReads(at).local,
  );
  page.counter(
    "clip_handed_reads_total",
    "Reads handed to the main thread because a span was missing.",
    ({ counters }) => counters.reads,
  );
  page.counter(
    "clip_handed_read_bytes_total",
    "Bytes that these reads were answered with.",
    ({ counters }) => counters.readBytes,
  );
  page.counter(
    "clip_handed_read_errors_total",
    "Reads that no tier could answer: the reader saw EIO.",
    ({ counters }) => counters.readErrors,
  );
  page.histogram(
    "clip_handed_read_duration_seconds",
    "How long readers waited for these reads.",
    ({ counters }) => [{ labels: {}, latencies: counters.readLatencies }],
  );
  page.gauge("clip_reads_waiting", "Reads that wait for bytes now.", (at) => at.readsWaiting);
  page.counter(
    "clip_wanted_spans_total",
    "Spans that these reads wanted, and where they found them: on disk, on their way, or missing.",
    ({ counters: { spanHits, spanJoins, spanMisses } }) =>
      byLabel("found", { disk: spanHits, on_its_way: spanJoins, missing: spanMisses }),
  );
}

type TierField = "fetches" | "spans" | "bytes" | "errors" | "misses";

function addTierMetrics(page: MetricsPage<NodeState>): void {
  const add = (name: string, help: string, field: TierField) =>
    page.counter(name, help, (at) => ofTiers(at, (tier) => tier[field]));
  add("clip_tier_fetches_total", "Fetches of neighbouring spans that were begun.", "fetches");
  add("clip_tier_spans_total", "Spans that came and matched their digest.", "spans");
  add("clip_tier_bytes_total", "Uncompressed bytes of these spans.", "bytes");
  add("clip_tier_errors_total", "Fetches that failed.", "errors");
  add("clip_tier_misses_total", "Fetches of spans that the tier did not have.", "misses");
  page.counter("clip_tier_corrupt_spans_total", "Spans that did not match their digest.", (at) =>
    ofTiers(at, (tier) => tier.corrupt),
  );
  page.histogram(
    "clip_tier_first_span_seconds",
    "Time from asking a tier to its first span, verified.",
    ({ counters }): LatencySample[] =>
      [...counters.sources].map(([tier, { latencies }]) => ({ labels: { tier }, latencies })),
  );
  page.counter(
    "clip_prefetched_spans_total",
    "Spans fetched ahead of sequential readers.",
    (at) => at.counters.prefetchedSpans,
  );
  page.counter(
    "clip_filled_spans_total",
    "Spans fetched by the background fill.",
    (at) => at.counters.filledSpans,
  );
  page.counter(
    "clip_span_write_errors_total",
    "Spans that could not be kept on disk.",
    (at) => at.counters.writeErrors,
  );
}

function addRegistryMetrics(page: MetricsPage<NodeState>): void {
  page.counter(
    "clip_registry_answers_total",
    "Answers of registries, their token services and their storage, by host and HTTP status.",
    (at) =>
      ofHosts(at, ({ answers }) =>
        [...answers].map(([status, value]) => ({ labels: { status: String(status) }, value })),
      ),
  );
  page.counter("clip_registry_bytes_total", "Bytes of the bodies of these answers.", (at) =>
    ofHosts(at, ({ bytes }) => [{ labels: {}, value: bytes }]),
  );
  page.counter(
    "clip_registry_faults_total",
    "Requests without an answer, and answers that broke off, by host and kind of fault.",
    (at) =>
      ofHosts(at, ({ faults }) =>
        [...faults].map(([fault, value]) => ({ labels: { fault }, value })),
      ),
  );
}

function addLayerMetrics(page: MetricsPage<NodeState>): void {
  page.gauge("clip_layers", "Layers of this node by state.", ({ layers }) => {
    const states = { lazy: 0, complete: 0 };
    for (const { state } of layers) states[state]++;
    return byLabel("state", states);
  });
  page.gauge("clip_layer_bytes", "Uncompressed bytes of all layers.", ({ layers }) =>
    sum(layers.map(({ size }) => size)),
  );
  page.gauge("clip_layer_local_bytes", "Uncompressed bytes of them that are local.", (at) =>
    sum(at.layers.map(({ localBytes }) => localBytes)),
  );
  page.gauge(
    "clip_disk_cache_bytes",
    "Bytes on disk of layers, their span maps and their metadata images.",
    ({ layers }) => sum(layers.map(({ diskBytes }) => diskBytes)),
  );
  page.gauge(
    "clip_disk_cache_limit_bytes",
    "Most bytes of layers and span maps; 0: no limit.",
    ({ diskCache }) => diskCache.bytesMax,
  );
  page.counter(
    "clip_evicted_bytes_total",
    "Bytes of spans and layers that had to make room on disk.",
    ({ diskCache }) => diskCache.evicted.bytes,
  );
  page.counter(
    "clip_evicted_spans_total",
    "Spans that had to make room.",
    ({ diskCache }) => diskCache.evicted.spans,
  );
  page.counter(
    "clip_evicted_layers_total",
    "Layers without users that had to make room as a whole.",
    ({ diskCache }) => diskCache.evicted.layers,
  );
  page.counter(
    "clip_disk_cache_refusals_total",
    "Spans and whole pulls for which no room could be made.",
    ({ diskCache }) => diskCache.evicted.refused,
  );
  page.counter(
    "clip_whole_pulls_total",
    "Layers pulled whole: for want of a layer index that can be used.",
    (at) => at.counters.wholePulls,
  );
  page.counter(
    "clip_whole_pull_bytes_total",
    "Compressed bytes of these layers.",
    (at) => at.counters.wholePullBytes,
  );
  page.counter(
    "clip_whole_pull_errors_total",
    "Whole pulls that failed.",
    (at) => at.counters.wholePullErrors,
  );
  page.gauge("clip_whole_pulls", "Whole pulls under way, and waiting for their turn.", (at) =>
    byLabel("state", { running: at.queues.pullsRunning, waiting: at.queues.pullsWaiting }),
  );
  page.gauge(
    "clip_fill_queue_layers",
    "Layers that the background fill has before it.",
    (at) => at.queues.fill,
  );
  page.counter(
    "clip_layers_completed_total",
    "Layers filled to the end that matched.",
    (at) => at.counters.completed,
  );
  page.counter(
    "clip_layer_mismatches_total",
    "Layers on disk that did not match, and indexes that lied.",
    (at) => at.counters.mismatches,
  );
  page.counter(
    "clip_layer_recoveries_total",
    "Layers with a wrong index that were pulled whole, by outcome.",
    ({ counters: { recoveries, recoveryErrors } }) =>
      byLabel("outcome", { recovered: recoveries, failed: recoveryErrors }),
  );
  page.counter(
    "clip_unreadable_spans_total",
    "Spans on disk that could not be read, and were fetched again.",
    (at) => at.counters.unreadableSpans,
  );
  page.counter(
    "clip_checked_bytes_total",
    "Bytes on disk that were compared with their digests.",
    (at) => at.counters.checkedBytes,
  );
  page.counter(
    "clip_damaged_total",
    "Spans and metadata images on disk that were wrong.",
    ({ counters: { damagedSpans, damagedImages } }) =>
      byLabel("kind", { span: damagedSpans, image: damagedImages }),
  );
  page.counter(
    "clip_repaired_total",
    "Those of them that were put right at once.",
    ({ counters: { repairedSpans, repairedImages } }) =>
      byLabel("kind", { span: repairedSpans, image: repairedImages }),
  );
  page.gauge(
    "clip_span_memory_bytes",
    "Memory held for spans on their way.",
    (at) => at.queues.memoryBytes,
  );
  page.gauge(
    "clip_span_memory_limit_bytes",
    "Limit of that memory.",
    (at) => at.queues.memoryBytesMax,
  );
}

function addContentCacheMetrics(page: MetricsPage<NodeState>): void {
  page.histogram(
    "clip_content_cache_call_duration_seconds",
    "Calls of content caches that have ended, by cache, operation and outcome.",
    ({ contentCache }) =>
      (contentCache?.counts ?? []).map(
        ({ cache, operation, outcome, latencies, milliseconds }) => ({
          labels: { cache, operation, outcome },
          latencies: {
            boundsMs: contentCache?.latencyBoundsMs ?? [],
            counts: latencies,
            milliseconds,
          },
        }),
      ),
  );
  page.counter(
    "clip_shared_layers_total",
    "What was done for sharing: indexes found or refused, copies found wrong, layers stored.",
    ({ cluster }) => byLabel("event", { ...cluster }),
  );
  page.gauge(
    "clip_store_queue_layers",
    "Layers that wait to be stored in the content cache.",
    (at) => at.queues.stores,
  );
  page.counter("clip_content_cache_bytes_total", "Bytes moved by these calls.", (at) =>
    (at.contentCache?.counts ?? []).map(({ cache, operation, outcome, bytes }) => ({
      labels: { cache, operation, outcome },
      value: bytes,
    })),
  );
}

function ofTiers({ counters }: NodeState, value: (tier: SourceCounters) => number): Sample[] {
  return [...counters.sources].map(([tier, counts]) => ({
    labels: { tier },
    value: value(counts),
  }));
}

function ofHosts(
  { registryHosts }: NodeState,
  samplesOf: (counts: HostCounts) => Sample[],
): Sample[] {
  return [...registryHosts].flatMap(([host, counts]) =>
    samplesOf(counts).map(({ labels, value }) => ({ labels: { host, ...labels }, value })),
  );
}

function byLabel(label: string, values: Record<string, number>): Sample[] {
  return Object.entries(values).map(([name, value]) => ({ labels: { [label]: name }, value }));
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
