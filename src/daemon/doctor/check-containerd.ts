/** Whether containerd answers, uses clip, and knows the same snapshots. */
import { stat } from "node:fs/promises";
import { describeError } from "../../base/errors.ts";
import { ContainerdClient, type PluginRecord } from "../../containerd/client.ts";
import { refLabel } from "../../snapshotter/snapshot.ts";
import { leftOverMs } from "./check-snapshots.ts";
import type { Finding } from "./finding.ts";
import type { NodeView, Patient } from "./patient.ts";

const snapshotterType = "io.containerd.snapshotter.v1";

/** All that is wrong between containerd and clip. */
export async function* checkContainerd(patient: Patient, view: NodeView): AsyncGenerator<Finding> {
  const { address } = patient.config.containerd;
  const containerd = new ContainerdClient({ address });
  try {
    yield* examine(containerd, patient, view);
  } catch (error) {
    yield {
      severity: patient.live === undefined ? "note" : "error",
      what: `containerd does not answer: ${describeError(error)}`,
      where: address,
      advice: "Start containerd, or correct containerd.address in the configuration.",
    };
  } finally {
    containerd.close();
  }
}

async function* examine(
  containerd: ContainerdClient,
  { config, live, signal }: Patient,
  view: NodeView,
): AsyncGenerator<Finding> {
  const plugins = (await containerd.plugins(signal)).filter(({ type }) => type === snapshotterType);
  const own = await findPlugin(plugins, config.address);
  if (own === undefined) {
    yield notConfigured(plugins, config);
    return;
  }
  // containerd asks clip for each of them.
  if (live === undefined) return;
  const known = new Set<string>();
  for (const namespace of await containerd.namespaces(signal)) {
    const names = new Set(await containerd.snapshots(namespace, own.id, signal));
    for (const name of names) known.add(name);
    yield* lostContainers(containerd, { namespace, snapshotter: own.id, names, signal });
    yield* lostImages(containerd, { namespace, snapshotter: own.id, names, signal });
  }
  yield* unknownSnapshots(view, known);
}

/** The plugin whose address leads to clip's socket. */
async function findPlugin(
  plugins: readonly PluginRecord[],
  address: string,
): Promise<PluginRecord | undefined> {
  const socket = await stat(address).catch(() => undefined);
  for (const plugin of plugins) {
    const said = plugin.exports["address"];
    if (said === undefined) continue;
    if (said === address) return plugin;
    const other = await stat(said).catch(() => undefined);
    if (other !== undefined && other.ino === socket?.ino && other.dev === socket.dev) return plugin;
  }
  return undefined;
}

function notConfigured(
  plugins: readonly PluginRecord[],
  { address, containerd }: Patient["config"],
): Finding {
  const other = plugins.find(({ id }) => id === "clip")?.exports["address"];
  return {
    severity: "error",
    what:
      other === undefined
        ? "containerd has no snapshotter with clip's address"
        : `containerd's snapshotter clip has the address ${other} instead of ${address}`,
    where: containerd.address,
    advice: `[proxy_plugins.clip] in containerd's configuration takes address = "${address}"; restart containerd then.`,
  };
}

interface Namespace {
  namespace: string;
  snapshotter: string;
  /** Snapshots that both know. */
  names: ReadonlySet<string>;
  signal: AbortSignal;
}

async function* lostContainers(
  containerd: ContainerdClient,
  { namespace, snapshotter, names, signal }: Namespace,
): AsyncGenerator<Finding> {
  for (const container of await containerd.containers(namespace, signal)) {
    if (container.snapshotter !== snapshotter || names.has(container.snapshotKey)) continue;
    yield {
      severity: "error",
      what: `the snapshot ${JSON.stringify(container.snapshotKey)} of a container is lost`,
      where: `${namespace}/${container.id}`,
      advice: `Remove the container: \`ctr -n ${namespace} containers rm ${container.id}\`.`,
    };
  }
}

/** Images that containerd takes to be unpacked, and that are not. */
async function* lostImages(
  containerd: ContainerdClient,
  { namespace, snapshotter, names, signal }: Namespace,
): AsyncGenerator<Finding> {
  const label = `containerd.io/gc.ref.snapshot.${snapshotter}`;
  for (const { digest, labels } of await containerd.listContent(namespace, [], signal)) {
    const chainId = labels.get(label);
    if (chainId === undefined || names.has(chainId)) continue;
    yield {
      severity: "error",
      what: `the snapshot ${chainId} of an image is lost`,
      where: `${namespace}/${digest}`,
      advice: `Remove the image of this configuration (\`ctr -n ${namespace} images rm\`), and pull it again.`,
    };
  }
}

function* unknownSnapshots(
  { snapshots }: NodeView,
  known: ReadonlySet<string>,
): Generator<Finding> {
  const before = BigInt(Date.now() - leftOverMs) * 1_000_000n;
  for (const { name, labels, createdAt } of snapshots) {
    const ref = labels.get(refLabel);
    // Keys have the namespace and a number before the name that clients use.
    const clientName = name.split("/").slice(2).join("/");
    if (createdAt > before || known.has(clientName) || (ref !== undefined && known.has(ref))) {
      continue;
    }
    yield {
      severity: "note",
      what: "containerd does not know this snapshot",
      where: name,
      advice: "containerd's garbage collection removes it: `ctr content prune references` runs it.",
    };
  }
}
