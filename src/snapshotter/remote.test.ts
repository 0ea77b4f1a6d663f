import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test, type TestContext } from "node:test";
import type { ResolvedImage, ResolveRequest } from "../containerd/resolved-image.ts";
import { chainIds, digestOf } from "../base/digest.ts";
import { ClipError, isClipError } from "../base/errors.ts";
import type { LayerTarget } from "../layer/target.ts";
import { silentLog } from "../telemetry/log.ts";
import type { LayerResolver, RemoteLayers } from "./remote-layers.ts";
import type { FallbackReason } from "./remote.ts";
import { refLabel, remoteLabel, type Snapshot } from "./snapshot.ts";
import { Snapshotter } from "./snapshotter.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-remote-"));
after(() => rmSync(directory, { recursive: true, force: true }));

/** Layers that exist at once, unless a test says otherwise. */
class FakeLayers implements RemoteLayers {
  readonly calls: string[] = [];
  readonly known = new Set<number>();
  path: string;
  ensureHook: (target: LayerTarget, signal: AbortSignal) => Promise<void> = () => Promise.resolve();
  prefetchHook: (number: number) => Promise<void> = () => Promise.resolve();
  mountHook: () => void = () => {};
  checkHook: () => void = () => {};
  opaque = new Set<number>();

  constructor(path: string) {
    this.path = path;
  }

  async prefetch(target: LayerTarget, signal: AbortSignal): Promise<number | undefined> {
    const number = numberOf(target);
    this.calls.push(`prefetch ${number}`);
    signal.addEventListener("abort", () => this.calls.push(`give up ${number}`), { once: true });
    this.known.add(number);
    await this.prefetchHook(number);
    return signal.aborted ? undefined : number;
  }

  async ensure(target: LayerTarget, signal: AbortSignal): Promise<number> {
    this.calls.push(`ensure ${numberOf(target)}`);
    await this.ensureHook(target, signal);
    return numberOf(target);
  }

  async checkOver(layer: number, below: readonly number[]): Promise<void> {
    this.calls.push(`check ${layer} over [${below.join()}]`);
    this.checkHook();
  }

  mount(layer: number): Promise<{ path: string; opaqueRoot: boolean }> {
    this.mountHook();
    return Promise.resolve({ path: join(this.path), opaqueRoot: this.opaque.has(layer) });
  }

  rootOf(layer: number): Promise<{ mode: number; uid: number; gid: number }> {
    return Promise.resolve({ mode: 0o41770 + layer, uid: 1000 + layer, gid: 2000 + layer });
  }

  usage(layer: number): Promise<{ bytes: number; inodes: number }> {
    return Promise.resolve({ bytes: layer * 512, inodes: layer });
  }

  numbers(): number[] {
    return [...this.known];
  }

  release(layer: number): void {
    this.calls.push(`release ${layer}`);
    this.known.delete(layer);
  }
}

function numberOf(target: LayerTarget): number {
  return target.compressedSize;
}

const diffIds = [1, 2, 3].map((at) => digestOf(Buffer.from(`layer ${at}`)));
const [base, middle, top] = chainIds(diffIds);
assert.ok(base !== undefined && middle !== undefined && top !== undefined);

/** An image of three layers, numbered 1 to 3. */
function image(position: number): ResolvedImage {
  const layers = diffIds.map((diffId, at) => ({
    layerDigest: diffId,
    diffId,
    compressedSize: at + 1,
    mediaType: "application/vnd.oci.image.layer.v1.tar+gzip",
    manifestDigest: digestOf(Buffer.from("manifest")),
    repositories: [],
  }));
  return { layers, chainIds: chainIds(diffIds), position, contentIsLocal: false };
}

/** Knows one image, unless a test says otherwise. */
class FakeResolver implements LayerResolver {
  readonly requests: ResolveRequest[] = [];
  answer: (found: ResolvedImage) => ResolvedImage | undefined = (found) => found;

  async resolve(request: ResolveRequest): Promise<ResolvedImage | undefined> {
    this.requests.push(request);
    await new Promise(setImmediate);
    return this.answer(image(chainIds(diffIds).indexOf(request.chainId)));
  }
}

let roots = 0;

async function start(context: TestContext, root = join(directory, String(roots++))) {
  const layers = new FakeLayers(directory);
  const fallbacks: FallbackReason[] = [];
  const resolver = new FakeResolver();
  const snapshotter = await Snapshotter.open({
    root,
    log: silentLog,
    remote: { layers, resolver },
    onFallback: (reason) => fallbacks.push(reason),
  });
  context.after(() => snapshotter.close());
  let keys = 0;
  /** A Prepare as containerd makes it: the name of the remote snapshot, or the mount to unpack to. */
  const prepare = async (ref: string, parent: string, signal = new AbortController().signal) => {
    const key = `k8s.io/${++keys}/extract-${keys} ${ref}`;
    const labels = new Map([
      [refLabel, ref],
      ["containerd.io/snapshot/cri.image-ref", "r.io/app:1"],
    ]);
    try {
      const request = { key, parent, labels, namespace: undefined };
      return { key, mount: await snapshotter.prepare(request, signal) };
    } catch (error) {
      if (!isClipError(error, "SNAPSHOT_EXISTS")) throw error;
      return { found: lookUp(snapshotter, ref, parent) };
    }
  };
  return { snapshotter, layers, resolver, fallbacks, prepare, root };
}

/** What containerd does when it is told that the snapshot exists. */
function lookUp(snapshotter: Snapshotter, ref: string, parent: string): Snapshot {
  const filter = `labels."${refLabel}"==${ref},parent=="${parent}"`;
  const found = snapshotter.list([filter]);
  assert.equal(found.length, 1);
  const [snapshot] = found;
  assert.ok(snapshot !== undefined);
  assert.equal(snapshot.kind, "committed");
  assert.equal(snapshot.parent, parent);
  assert.equal(snapshot.labels.get(refLabel), ref);
  return snapshot;
}

async function pull(prepare: Awaited<ReturnType<typeof start>>["prepare"]): Promise<Snapshot[]> {
  const snapshots: Snapshot[] = [];
  for (const ref of chainIds(diffIds)) {
    const { found } = await prepare(ref, snapshots.at(-1)?.name ?? "");
    assert.ok(found !== undefined);
    snapshots.push(found);
  }
  return snapshots;
}

test("a pull finds committed snapshots and no active ones, and prefetches all layers once", async (context) => {
  const { prepare, layers, resolver, snapshotter, fallbacks } = await start(context);
  const snapshots = await pull(prepare);
  assert.deepEqual(snapshotter.list([]), snapshots);
  assert.ok(snapshots.every(({ labels }) => labels.has(remoteLabel)));
  assert.deepEqual(layers.calls, [
    "prefetch 1",
    "prefetch 2",
    "prefetch 3",
    "ensure 1",
    "check 1 over []",
    "ensure 2",
    "check 2 over [1]",
    "ensure 3",
    "check 3 over [2,1]",
  ]);
  assert.deepEqual(fallbacks, []);
  assert.equal(resolver.requests[0]?.namespace, "k8s.io");
  assert.equal(
    resolver.requests[0]?.labels.get("containerd.io/snapshot/cri.image-ref"),
    "r.io/app:1",
  );
});

test("what is made ready ahead of time is given up, or back, when the image falls back", async (context) => {
  const { prepare, layers, fallbacks } = await start(context);
  // The third layer takes long.
  layers.prefetchHook = (number) => (number === 3 ? new Promise(() => {}) : Promise.resolve());
  layers.ensureHook = async () => {
    await new Promise(setImmediate);
    throw new ClipError("REGISTRY_DENIED", "no");
  };
  await prepare(base, "");
  assert.deepEqual(fallbacks, ["registry_denied"]);
  assert.deepEqual(layers.calls.slice(-5), [
    "give up 1",
    "give up 2",
    "give up 3",
    "release 1",
    "release 2",
  ]);
});

test("a layer that two pulls want stays when one of them falls back", async (context) => {
  const { prepare, layers, resolver } = await start(context);
  let manifest = 0;
  resolver.answer = (found) => ({
    ...found,
    layers: found.layers.map((layer) => ({
      ...layer,
      manifestDigest: digestOf(Buffer.from(`manifest ${manifest}`)),
    })),
  });
  const gate = Promise.withResolvers<void>();
  layers.ensureHook = () => gate.promise;
  const first = prepare(base, "");
  await new Promise((resolve) => setTimeout(resolve, 20));
  manifest++;
  layers.ensureHook = () => Promise.reject(new ClipError("REGISTRY_DENIED", "no"));
  await prepare(middle, "");
  assert.ok(!layers.calls.some((call) => call.startsWith("release")));
  gate.resolve();
  assert.ok((await first).found !== undefined);
});

test("a second pull is answered from the table alone", async (context) => {
  const { prepare, layers, resolver } = await start(context);
  const first = await pull(prepare);
  const asked = resolver.requests.length;
  const called = layers.calls.length;
  assert.deepEqual(await pull(prepare), first);
  assert.equal(resolver.requests.length, asked);
  assert.equal(layers.calls.length, called);
});

test("concurrent calls for the same parent and ref make one snapshot", async (context) => {
  const { prepare, layers, snapshotter } = await start(context);
  const gate = Promise.withResolvers<void>();
  layers.ensureHook = () => gate.promise;
  const calls = Array.from({ length: 8 }, () => prepare(base, ""));
  await new Promise(setImmediate);
  gate.resolve();
  const names = new Set((await Promise.all(calls)).map(({ found }) => found?.name));
  assert.equal(names.size, 1);
  assert.equal(snapshotter.list([]).length, 1);
  assert.equal(layers.calls.filter((call) => call === "ensure 1").length, 1);
});

test("whatever goes wrong with the layer, containerd can unpack it", async (context) => {
  const unavailable = new ClipError("REGISTRY_UNAVAILABLE", "no");
  const { prepare, layers, resolver, fallbacks, snapshotter } = await start(context);
  const fallsBack = async (ref: string, reason: FallbackReason) => {
    const { mount, key } = await prepare(ref, "");
    assert.equal(mount?.type, "bind");
    assert.equal(fallbacks.at(-1), reason);
    assert.equal(snapshotter.stat(key ?? "").kind, "active");
  };
  layers.ensureHook = () => Promise.reject(unavailable);
  await fallsBack(base, "registry_unavailable");
  layers.ensureHook = () => Promise.reject(new TypeError("a defect"));
  await fallsBack(base, "defect");
  layers.ensureHook = () => Promise.resolve();
  layers.mountHook = () => {
    throw new ClipError("SYSTEM_CALL", "mount failed");
  };
  await fallsBack(base, "system_call");
  assert.ok(layers.calls.includes("release 1"), "a layer that nothing refers to is given back");
  resolver.answer = () => undefined;
  await fallsBack(base, "image_unknown");
  resolver.answer = (found) => ({ ...found, contentIsLocal: true });
  await fallsBack(base, "content_local");
  resolver.answer = () => {
    throw new ClipError("CONTAINERD_UNAVAILABLE", "no");
  };
  await fallsBack(base, "containerd_unavailable");
  await fallsBack("not a digest", "ref_not_a_digest");
  assert.equal(fallbacks.length, 7);
});

test("a layer that would look otherwise over those below it is unpacked", async (context) => {
  const { prepare, layers, fallbacks } = await start(context);
  const { found } = await prepare(base, "");
  layers.checkHook = () => {
    throw new ClipError("LAYER_UNSUPPORTED", "no");
  };
  const { mount } = await prepare(middle, found?.name ?? "");
  assert.equal(mount?.type, "overlay");
  assert.deepEqual(fallbacks, ["layer_unsupported"]);
  assert.ok(layers.calls.includes("release 2"));
});

test("a layer on top of an unpacked one is unpacked too", async (context) => {
  const { prepare, layers, fallbacks, snapshotter } = await start(context);
  layers.ensureHook = () => Promise.reject(new ClipError("REGISTRY_UNAVAILABLE", "no"));
  const { key } = await prepare(base, "");
  await snapshotter.commit({ key: key ?? "", name: "unpacked", labels: new Map(), parent: "" });
  layers.ensureHook = () => Promise.resolve();
  const { mount } = await prepare(middle, "unpacked");
  assert.equal(mount?.type, "overlay");
  assert.deepEqual(fallbacks, ["registry_unavailable", "parent_not_lazy"]);
});

test("a layer that has to be unpacked lies on top of lazy ones", async (context) => {
  const { prepare, layers, snapshotter } = await start(context);
  const { found } = await prepare(base, "");
  layers.ensureHook = () => Promise.reject(new ClipError("CORRUPT_LAYER", "no"));
  const { key, mount } = await prepare(middle, found?.name ?? "");
  assert.ok(mount?.options.includes(`lowerdir=${directory}`));
  assert.deepEqual(await snapshotter.mounts(key ?? "", new AbortController().signal), mount);
});

test("when the last caller leaves, the work is given up, and nothing is prepared", async (context) => {
  const { prepare, layers, snapshotter, fallbacks } = await start(context);
  const given = Promise.withResolvers<void>();
  layers.ensureHook = (_, signal) =>
    new Promise((_, reject) => {
      signal.addEventListener("abort", () => {
        given.resolve();
        reject(new Error("given up"));
      });
    });
  const [one, two] = [new AbortController(), new AbortController()];
  const calls = [prepare(base, "", one.signal), prepare(base, "", two.signal)];
  const outcomes = Promise.allSettled(calls);
  one.abort();
  await new Promise(setImmediate);
  two.abort();
  await given.promise;
  for (const outcome of await outcomes) {
    assert.ok(outcome.status === "rejected" && isClipError(outcome.reason, "ABORTED"));
  }
  assert.deepEqual(snapshotter.list([]), []);
  assert.deepEqual(fallbacks, []);
});

test("one caller's leaving is nothing to the other", async (context) => {
  const { prepare, layers } = await start(context);
  const gate = Promise.withResolvers<void>();
  layers.ensureHook = () => gate.promise;
  const leaving = new AbortController();
  const gone = assert.rejects(prepare(base, "", leaving.signal));
  const staying = prepare(base, "");
  leaving.abort();
  await gone;
  gate.resolve();
  assert.ok((await staying).found !== undefined);
});

test("a crash between layer and snapshot leaves nothing that stands in the way", async (context) => {
  const root = join(directory, "crash");
  const before = await start(context, root);
  const { found } = await before.prepare(base, "");
  const ready = Promise.withResolvers<void>();
  before.layers.ensureHook = () => {
    ready.resolve();
    return new Promise(() => {});
  };
  const lost = new AbortController();
  const call = assert.rejects(before.prepare(middle, found?.name ?? "", lost.signal));
  await ready.promise;
  const again = await start(context, root);
  assert.deepEqual(again.snapshotter.layersInUse(), [1]);
  const next = await again.prepare(middle, found?.name ?? "");
  assert.equal(next.found?.layer, 2);
  assert.deepEqual((await again.prepare(base, "")).found, found);
  lost.abort();
  await call;
});

test("layers that were made ready in vain are released in time, but not during a pull", async (context) => {
  context.mock.timers.enable({ apis: ["setInterval"] });
  const { prepare, layers } = await start(context);
  const sweep = () => context.mock.timers.tick(10 * 60_000);
  const released = () => layers.calls.filter((call) => call.startsWith("release"));
  const { found } = await prepare(base, "");
  const gate = Promise.withResolvers<void>();
  layers.ensureHook = () => gate.promise;
  const client = new AbortController();
  const slow = prepare(middle, found?.name ?? "", client.signal);
  await new Promise(setImmediate);
  sweep();
  sweep();
  sweep();
  assert.deepEqual(released(), []);
  client.abort();
  await assert.rejects(slow);
  sweep();
  assert.deepEqual(released(), []);
  sweep();
  assert.deepEqual(released(), ["release 2", "release 3"]);
});

test("a layer is released when its last snapshot goes, and only then", async (context) => {
  const { prepare, layers, snapshotter } = await start(context);
  const snapshots = await pull(prepare);
  const upper = await prepare(base, snapshots[2]?.name ?? "");
  assert.equal(upper.found?.layer, 1, "the same layer once more, elsewhere in the stack");
  layers.calls.length = 0;
  for (const { name } of [upper.found, ...snapshots.toReversed()]) await snapshotter.remove(name);
  assert.deepEqual(layers.calls, ["release 3", "release 2", "release 1"]);
});

test("a layer is not released while another snapshot is being made of it", async (context) => {
  const { prepare, layers, snapshotter } = await start(context);
  const first = await prepare(base, "");
  const other = await prepare(top, "");
  layers.calls.length = 0;
  let removing: Promise<void> | undefined;
  layers.mountHook = () => {
    layers.mountHook = () => {};
    removing = snapshotter.remove(first.found?.name ?? "");
  };
  const second = await prepare(base, other.found?.name ?? "");
  await removing;
  assert.ok(!layers.calls.includes("release 1"));
  await snapshotter.remove(second.found?.name ?? "");
  assert.ok(layers.calls.includes("release 1"));
});

test("a remote snapshot's usage is that of its layer, and its content that of the mount", async (context) => {
  const { prepare, layers, snapshotter } = await start(context);
  const [lowest, second] = await pull(prepare);
  assert.ok(lowest !== undefined && second !== undefined);
  const { signal } = new AbortController();
  assert.deepEqual(await snapshotter.usage(second.name, signal), { bytes: 1024, inodes: 2 });
  layers.opaque.add(2);
  const request = { key: "v", parent: second.name, labels: new Map(), namespace: undefined };
  const mount = await snapshotter.view(request, signal);
  assert.deepEqual(mount, { type: "bind", source: directory, options: ["ro", "rbind"] });
  assert.deepEqual(await snapshotter.usage("v", signal), { bytes: 0, inodes: 0 });
});

test("the root of a container is like that of its topmost layer, whose mount nobody looks at", async (context) => {
  const { prepare, snapshotter, layers, root } = await start(context);
  const [lowest] = await pull(prepare);
  assert.ok(lowest !== undefined);
  // Whoever would look there would fail.
  layers.path = join(root, "nothing", "here");
  const { signal } = new AbortController();
  const request = { key: "c", parent: lowest.name, labels: new Map(), namespace: undefined };
  const { options } = await snapshotter.prepare(request, signal);
  assert.ok(options.includes(`lowerdir=${layers.path}`));
  const upper = options.find((option) => option.startsWith("upperdir="))?.slice(9) ?? "";
  const { mode, uid, gid } = await stat(upper);
  assert.deepEqual([mode & 0o7777, uid, gid], [0o1771, 1001, 2001]);
});
