/** A node over its life: many clients at once, layers that cannot be lazy, restarts, no registry. */
import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { clip } from "./harness/clip.ts";
import type { Containerd } from "./harness/containerd.ts";
import { fixtures, makeImplied, makeMixed } from "./harness/fixtures.ts";
import { pushImage, unpackWithTar, type Image } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, startClipAgain, startStage, type Stage } from "./harness/stage.ts";
import { assertProcessSees, listTree } from "./harness/tree.ts";
import { until } from "./harness/until.ts";

let sandbox: Sandbox;
let registry: TestRegistry;
let stages: Stage[] = [];
let nodes = 0;

before(async () => {
  sandbox = await Sandbox.create();
  registry = await startRegistry(sandbox);
});

afterEach(async () => {
  for (const stage of stages) {
    await assertNothingLeft(stage);
    await stage.containerd.close();
    await stage.clip.stop();
  }
  stages = [];
});

after(() => sandbox.close());

describe("a node", () => {
  test("serves several clients at once, in several namespaces", async () => {
    const { containerd } = await start();
    const { name: kinds } = await indexed("kinds");
    const { name: compressors } = await indexed("compressors");
    const pulls = [
      ...["one", "two", "three"].map((namespace) => ({ namespace, name: kinds })),
      ...["one", "two"].map((namespace) => ({ namespace, name: compressors })),
      { namespace: "one", name: kinds },
    ];
    await Promise.all(
      pulls.map(({ namespace, name }) =>
        containerd.nerdctl(["--namespace", namespace, "--snapshotter", "clip", "pull", name]),
      ),
    );
    const outputs = await Promise.all(
      pulls.map(({ namespace, name }) =>
        containerd.nerdctl([
          ...["--namespace", namespace, "--snapshotter", "clip", "run", "--rm", "--net", "none"],
          ...[name, "sh", "-c", "cat /srv/small || cat /srv/tool-6/end"],
        ]),
      ),
    );
    assert.deepEqual(outputs, ["small", "small", "small", "end", "end", "small"]);
  });

  test("leaves layers that it cannot serve, and those above them, to containerd", async () => {
    const { containerd } = await start();
    const directory = await sandbox.subdirectory("mixed");
    const image = await makeMixed(directory);
    const name = await pushImage(image, registry.host, "test/mixed");
    const tree = await listTree(await unpackWithTar(image, directory));
    await assertProcessSees(await runInBackground(containerd, name), tree);
  });

  test("shows directories that only the layers below describe as containerd does", async () => {
    const { containerd, clip: daemon } = await start();
    const image = await makeImplied(await sandbox.subdirectory("implied"));
    const name = await pushImage(image, registry.host, "test/implied");
    const seen: string[] = [];
    for (const snapshotter of ["clip", "overlayfs"]) {
      const command = ["run", "--rm", "--net", "none", name, "sh", "-c"];
      const list = "busybox stat -c '%n %a %u:%g' /tmp /srv /srv/*; busybox ls -R /srv /tmp";
      const options = ["--namespace", snapshotter, "--snapshotter", snapshotter];
      seen.push(await containerd.nerdctl([...options, ...command, list]));
    }
    assert.equal(seen[0], seen[1]);
    assert.match(seen[0] ?? "", /^\/tmp 1777 0:0$/m);
    const fallbacks = daemon.log().match(/layer_unsupported|parent_not_lazy/g);
    assert.deepEqual(fallbacks, ["layer_unsupported", "parent_not_lazy"]);
  });

  test("lets containerd unpack when it does not know the registry's port", async () => {
    const { containerd, clip: daemon } = await start({ registry: { host: [] } });
    const { name } = await indexed("kinds");
    await containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", name]);
    const command = ["run", "--rm", "--snapshotter", "clip", name, "c", "cat", "/srv/small"];
    assert.equal(await containerd.ctr(command), "small");
    assert.match(daemon.log(), /"level":\s*"?(40|warn)/, "the fallback is logged");
  });

  test("has everything again after a restart", async () => {
    const stage = await start();
    const { containerd, clip: daemon } = stage;
    const { name } = await indexed("kinds");
    await runInBackground(containerd, name);
    await containerd.nerdctl(["rm", "-f", "tree"]);
    await daemon.stop();
    assert.deepEqual(daemon.mounts(), [], "a daemon that was told to stop leaves no mounts");
    await startClipAgain(stage);
    const output = await containerd.nerdctl([
      ...["--snapshotter", "clip", "run", "--rm", "--net", "none", name],
      ...["sh", "-c", "cat /srv/small; md5sum < /srv/large"],
    ]);
    assert.match(output, /^small\n[0-9a-f]{32} /);
  });

  test("completes a layer in the background, and then needs no registry", async () => {
    const { containerd } = await start({
      layer: { background_fill: true, background_fill_delay_ms: 200 },
    });
    const { name, image } = await indexed("kinds");
    const size = image.layers.reduce((sum, layer) => sum + layer.size, 0);
    registry.reset();
    await runInBackground(containerd, name);
    await until(() => registry.blobBytes("test/kinds") >= size, "the layer is fetched");
    await registry.stop();
    try {
      const sum = await containerd.nerdctl(["exec", "tree", "md5sum", "/srv/large"]);
      assert.match(sum, /^[0-9a-f]{32} /);
    } finally {
      await registry.start();
    }
  });

  test("shares the machine with another", async () => {
    const [first, second] = await Promise.all([start(), start()]);
    const { name } = await indexed("kinds");
    await Promise.all([
      runInBackground(first.containerd, name),
      runInBackground(second.containerd, name),
    ]);
    await assertNothingLeft(first);
    const read = await second.containerd.nerdctl(["exec", "tree", "cat", "/srv/last"]);
    assert.equal(read, "last");
  });
});

async function start(settings: Record<string, Record<string, unknown>> = {}): Promise<Stage> {
  const name = `node-${++nodes}`;
  const stage = await startStage(sandbox, {
    ...{ generation: "2", mode: "auto", registry, settings, name },
  });
  stages.push(stage);
  return stage;
}

/** An image of the fixtures with its index published. */
async function indexed(fixture: string): Promise<{ name: string; image: Image }> {
  const made = images.get(fixture) ?? makeIndexed(fixture);
  images.set(fixture, made);
  return made;
}

const images = new Map<string, Promise<{ name: string; image: Image }>>();

async function makeIndexed(fixture: string): Promise<{ name: string; image: Image }> {
  const found = fixtures.find(({ name }) => name === fixture);
  assert.ok(found !== undefined);
  const image = await found.make(await sandbox.subdirectory(fixture));
  const name = await pushImage(image, registry.host, `test/${fixture}`);
  await clip(["index", "create", name, "--push", "--plain-http"]);
  return { name, image };
}

/** Runs the container `tree`; returns its process. */
async function runInBackground(containerd: Containerd, name: string): Promise<number> {
  await containerd.nerdctl([
    ...["--snapshotter", "clip", "run", "-d", "--net", "none", "--name", "tree", name],
    ...["sleep", "1000"],
  ]);
  return Number(await containerd.nerdctl(["inspect", "-f", "{{.State.Pid}}", "tree"]));
}
