/** The status of a node for a person's terminal. */
import type { NodeStatus } from "../daemon/status.ts";
import { formatBytes, formatTable } from "./text.ts";

/** Digits of a digest that tell layers apart. */
const digestDigits = 12;

/** Some lines and tables. */
export function formatStatus(status: NodeStatus): string {
  const parts = [
    formatTable(undefined, headRows(status)),
    formatTable(["LAYER", "STATE", "LOCAL", "SIZE", "ON DISK"], layerRows(status)),
    formatTable(["SPANS FROM", "HITS", "BYTES", "ERRORS", "CORRUPT", "MEDIAN"], tierRows(status)),
    formatTable(undefined, workRows(status)),
  ];
  if (status.contentCache !== null && status.contentCache.length > 0) {
    const names = ["CONTENT CACHE", "OPERATION", "OUTCOME", "CALLS"];
    parts.push(
      formatTable(
        names,
        status.contentCache.map((count) => [
          count.cache,
          count.operation,
          count.outcome,
          `${count.calls}`,
        ]),
      ),
    );
  }
  return parts.join("\n");
}

function headRows({ version, pid, uptimeSeconds, mode, root, snapshots }: NodeStatus): string[][] {
  const { active, view, committed, remote } = snapshots;
  return [
    ["clip", `${version}, process ${pid}, up ${formatDuration(uptimeSeconds)}`],
    ["root", root],
    ["mode", mode],
    [
      "snapshots",
      `${active} active, ${view} view, ${committed} committed, ${remote} layers served on demand`,
    ],
  ];
}

function layerRows({ layers }: NodeStatus): string[][] {
  const rows = layers.map(({ layerDigest, state, localBytes, size, diskBytes }) => [
    layerDigest.slice("sha256:".length).slice(0, digestDigits),
    state,
    formatShare(size === 0 ? 1 : localBytes / size),
    formatBytes(size),
    formatBytes(diskBytes),
  ]);
  if (layers.length < 2) return rows;
  const total = (value: (layer: NodeStatus["layers"][number]) => number) =>
    layers.reduce((sum, layer) => sum + value(layer), 0);
  const size = total((layer) => layer.size);
  const local = total(({ localBytes }) => localBytes);
  const onDisk = formatBytes(total(({ diskBytes }) => diskBytes));
  const share = formatShare(size === 0 ? 1 : local / size);
  return [...rows, [`${layers.length} layers`, "", share, formatBytes(size), onDisk]];
}

function tierRows({ tiers }: NodeStatus): string[][] {
  return Object.entries(tiers).map(([name, { hits, bytes, errors, corrupt, medianMs }]) => [
    name.replaceAll("_", " "),
    `${hits}`,
    bytes === null ? "-" : formatBytes(bytes),
    `${errors}`,
    `${corrupt}`,
    medianMs === null ? "-" : `<= ${medianMs} ms`,
  ]);
}

function workRows(state: NodeStatus): string[][] {
  const { reads, hitRatio, wholePulls, fallbacks, queues, diskCache, damage } = state;
  const share = (value: number | null) => (value === null ? "-" : formatShare(value));
  const reasons = Object.entries(fallbacks).map(
    ([reason, count]) => `${count} ${reason.replaceAll("_", " ")}`,
  );
  const { fill, stores, pullsRunning, pullsWaiting, memoryBytes, memoryBytesMax } = queues;
  return [
    [
      "hit ratio",
      `${share(hitRatio.all)} (disk ${share(hitRatio.disk)} of reads, ` +
        `content cache ${share(hitRatio.contentCache)} of fetched spans)`,
    ],
    [
      "reads",
      `${reads.all}, ${reads.handed} handed over, ${reads.waiting} waiting, ${reads.errors} failed`,
    ],
    [
      "whole pulls",
      `${wholePulls.done} done (${formatBytes(wholePulls.compressedBytes)} compressed), ` +
        `${wholePulls.failed} failed, ${pullsRunning} running, ${pullsWaiting} waiting`,
    ],
    ["to fill", `${fill} layers`],
    ["to store", `${stores} layers`],
    ["disk cache", diskCacheText(diskCache)],
    ["damage", damageText(damage)],
    ["memory", `${formatBytes(memoryBytes)} of ${formatBytes(memoryBytesMax)} for spans`],
    ["fallbacks", reasons.length === 0 ? "none" : reasons.join(", ")],
  ];
}

function damageText(damage: NodeStatus["damage"]): string {
  const { checkedBytes, unreadableSpans, damagedSpans, damagedImages } = damage;
  const checked = `${formatBytes(checkedBytes)} checked`;
  if (unreadableSpans + damagedSpans + damagedImages === 0) return `none, ${checked}`;
  const repaired = damage.repairedSpans + damage.repairedImages;
  return (
    `${damagedSpans} spans and ${damagedImages} metadata images, ${repaired} repaired at once, ` +
    `${checked}; ${unreadableSpans} spans unreadable`
  );
}

function diskCacheText({ bytes, bytesMax, evicted }: NodeStatus["diskCache"]): string {
  const limit = bytesMax === 0 ? "" : ` of ${formatBytes(bytesMax)}`;
  return (
    `${formatBytes(bytes)}${limit}, ${formatBytes(evicted.bytes)} evicted ` +
    `(${evicted.spans} spans, ${evicted.layers} layers), ${evicted.refused} refused`
  );
}

// A layer of which a byte is missing is not shown as all there.
function formatShare(share: number): string {
  const percent = share < 1 ? Math.min(share * 100, 99.9) : 100;
  return `${percent.toFixed(1)} %`;
}

/** `3 d 4 h`, `2 min 5 s`: the two largest units. */
export function formatDuration(seconds: number): string {
  const units: [string, number][] = [
    ["d", 86_400],
    ["h", 3_600],
    ["min", 60],
    ["s", 1],
  ];
  const first = units.findIndex(([, length]) => seconds >= length);
  if (first === -1) return "0 s";
  let rest = Math.floor(seconds);
  return units
    .slice(first, first + 2)
    .map(([name, length]) => {
      const count = Math.floor(rest / length);
      rest %= length;
      return `${count} ${name}`;
    })
    .join(" ");
}
