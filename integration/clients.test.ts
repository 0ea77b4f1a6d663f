/**
 * What a person or a kubelet does with an image, end to end: ctr, nerdctl and the CRI, containerd
 * of both generations, both ways to mount a layer.
 */
import assert from "node:assert/strict";
import { after, afterEach, before, describe, test } from "node:test";
import { clip } from "./harness/clip.ts";
import { CriClient } from "./harness/cri.ts";
import { fixtures, makeBase, makePause } from "./harness/fixtures.ts";
import { pushImage, type Image } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, mountModes, startStage, type Stage } from "./harness/stage.ts";
import { containerdGenerations } from "./harness/tools.ts";
import { assertProcessSees, listTree, type Tree } from "./harness/tree.ts";

/** Bytes of an image of which only a part is needed to start. */
const LARGE = 4_000_000;

let images: Sandbox;
let registry: TestRegistry;
let pause: string;
let unindexed: string;
const references = new Map<string, { name: string; image: Image; tree: Tree }>();

before(async () => {
  images = await Sandbox.create();
  registry = await startRegistry(images);
  pause = await pushImage(
    await makePause(await images.subdirectory("pause")),
    registry.host,
    "test/pause",
  );
  unindexed = await pushImage(
    await makeBase(await images.subdirectory("base")),
    registry.host,
    "test/unindexed",
  );
  for (const fixture of fixtures) {
    const directory = await images.subdirectory(fixture.name);
    const image = await fixture.make(directory);
    const name = await pushImage(image, registry.host, `test/${fixture.name}`);
    await clip(["index", "create", name, "--push", "--plain-http"]);
    const tree = await listTree(await fixture.reference(image, directory));
    references.set(fixture.name, { name, image, tree });
  }
});

after(() => images.close());

for (const generation of containerdGenerations) {
  for (const mode of mountModes) {
    describe(`containerd ${generation}, ${mode}`, () => {
      let sandbox: Sandbox;
      let stage: Stage;

      before(async () => {
        sandbox = await Sandbox.create();
        // Each mode with another way of the CRI to pull: by transfer or by itself, with labels.
        const criAnnotations = mode === "fuse";
        const pauseImage = pause;
        stage = await startStage(sandbox, {
          generation,
          mode,
          registry,
          pauseImage,
          criAnnotations,
        });
      });

      afterEach(() => assertNothingLeft(stage));
      after(() => sandbox.close());

      for (const fixture of fixtures) {
        test(`nerdctl shows the tree of ${fixture.name}`, () => showsTree(stage, fixture.name));
      }
      test("nerdctl pulls, runs, executes, commits, removes and prunes", () => useNerdctl(stage));
      test("nerdctl runs an image without an index", () => runUnindexed(stage));
      test("ctr pulls, runs, executes and removes", () => useCtr(stage));
      test("the CRI pulls, runs, executes and removes", () => useCri(stage));
    });
  }
}

async function showsTree(stage: Stage, fixture: string): Promise<void> {
  const { containerd } = stage;
  const { name, image, tree } = referenceOf(fixture);
  registry.reset();
  await containerd.nerdctl([
    ...["--snapshotter", "clip", "run", "-d", "--net", "none", "--name", "tree", name],
    ...["sleep", "1000"],
  ]);
  const started = registry.blobBytes(`test/${fixture}`);
  const total = image.layers.reduce((sum, { size }) => sum + size, 0);
  // The programs of a small image are most of it.
  if (total > LARGE) {
    assert.ok(started < total / 2, `${started} of ${total} bytes were fetched to start`);
  }
  const pid = Number(await containerd.nerdctl(["inspect", "-f", "{{.State.Pid}}", "tree"]));
  await assertProcessSees(pid, tree);
}

async function useNerdctl(stage: Stage): Promise<void> {
  const { containerd } = stage;
  const { name } = referenceOf("kinds");
  const nerdctl = (...args: string[]): Promise<string> =>
    containerd.nerdctl(["--snapshotter", "clip", ...args]);
  await nerdctl("pull", name);
  assert.equal(await nerdctl("run", "--rm", "--net", "none", name, "cat", "/srv/small"), "small");
  await nerdctl("run", "-d", "--net", "none", "--name", "one", name, "sleep", "1000");
  assert.equal(await nerdctl("exec", "one", "cat", "/srv/last"), "last");
  const change = "echo more >> /srv/small && rm /srv/last && echo new > /srv/many/new";
  await nerdctl("exec", "one", "sh", "-c", change);
  assert.equal(await nerdctl("exec", "one", "cat", "/srv/small"), "small\nmore");
  await nerdctl("commit", "one", "committed:1");
  await nerdctl("rm", "-f", "one");
  const show = "cat /srv/small /srv/many/new; ls /srv/last || echo gone";
  assert.equal(
    await nerdctl("run", "--rm", "--net", "none", "committed:1", "sh", "-c", show),
    "small\nmore\nnew\ngone",
  );
  // The image below is as it was.
  assert.equal(await nerdctl("run", "--rm", "--net", "none", name, "cat", "/srv/last"), "last");
  await nerdctl("rmi", "-f", "committed:1");
  await nerdctl("image", "prune", "--all", "--force");
  assert.equal(await nerdctl("images", "-q"), "");
}

async function runUnindexed(stage: Stage): Promise<void> {
  const output = await stage.containerd.nerdctl([
    ...["--snapshotter", "clip", "run", "--rm", "--net", "none", unindexed],
    ...["cat", "/etc/os-release"],
  ]);
  assert.equal(output, 'NAME="clip test"');
}

async function useCtr(stage: Stage): Promise<void> {
  const { containerd } = stage;
  const { name, image } = referenceOf("kinds");
  const ctr = (...args: string[]): Promise<string> => containerd.ctr(args);
  registry.reset();
  await ctr("image", "pull", "--plain-http", "--snapshotter", "clip", name);
  const command = ["run", "--rm", "--snapshotter", "clip", name, "once", "cat", "/srv/small"];
  assert.equal(await ctr(...command), "small");
  const total = image.layers.reduce((sum, { size }) => sum + size, 0);
  // ctr before 2.0 fetches every layer first, whatever the snapshotter.
  if (containerd.generation === "2") {
    const fetched = registry.blobBytes("test/kinds");
    assert.ok(fetched < total / 2, `${fetched} of ${total} bytes were fetched`);
  }
  await ctr("run", "-d", "--snapshotter", "clip", name, "two", "sleep", "1000");
  assert.equal(await ctr("task", "exec", "--exec-id", "e", "two", "cat", "/srv/last"), "last");
  await ctr("task", "exec", "--exec-id", "f", "two", "sh", "-c", "echo changed > /srv/small");
  assert.equal(await ctr("task", "exec", "--exec-id", "g", "two", "cat", "/srv/small"), "changed");
  await ctr("snapshots", "--snapshotter", "clip", "usage", "two");
  await ctr("task", "kill", "--signal", "SIGKILL", "two");
}

async function useCri(stage: Stage): Promise<void> {
  const { name, image } = referenceOf("kinds");
  const cri = new CriClient(stage.containerd);
  try {
    registry.reset();
    await cri.pull(name);
    assert.ok((await cri.images()).includes(name));
    const container = await cri.run(name, ["sleep", "1000"]);
    const read = await cri.exec(container, ["cat", "/srv/small"]);
    assert.deepEqual(read, { exitCode: 0, stdout: "small\n", stderr: "" });
    const fetched = registry.blobBytes("test/kinds");
    const total = image.layers.reduce((sum, { size }) => sum + size, 0);
    assert.ok(fetched < total / 2, `${fetched} of ${total} bytes were fetched`);
    const change = ["sh", "-c", "echo changed > /srv/small; rm /srv/last"];
    assert.equal((await cri.exec(container, change)).exitCode, 0);
    assert.equal((await cri.exec(container, ["cat", "/srv/small"])).stdout, "changed\n");
    await cri.remove(container);
    await cri.removeImage(name);
    assert.ok(!(await cri.images()).includes(name));
  } finally {
    cri.close();
  }
}

function referenceOf(fixture: string): { name: string; image: Image; tree: Tree } {
  const reference = references.get(fixture);
  assert.ok(reference !== undefined, `${fixture} was made`);
  return reference;
}
