/** What `config/` tells people to write into containerd's configuration works as it stands. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { clip } from "./harness/clip.ts";
import { CriClient } from "./harness/cri.ts";
import { fixtures } from "./harness/fixtures.ts";
import { pushImage } from "./harness/image.ts";
import { startRegistry, type TestRegistry } from "./harness/registry.ts";
import { Sandbox } from "./harness/sandbox.ts";
import { assertNothingLeft, startStage, type Stage } from "./harness/stage.ts";
import { containerdGenerations } from "./harness/tools.ts";

for (const generation of containerdGenerations) {
  describe(`config/containerd-${generation}.x.toml`, () => {
    let sandbox: Sandbox;
    let registry: TestRegistry;
    let stage: Stage;
    let name: string;
    let size = 0;

    before(async () => {
      sandbox = await Sandbox.create();
      registry = await startRegistry(sandbox);
      const kinds = fixtures.find((fixture) => fixture.name === "kinds");
      assert.ok(kinds !== undefined);
      const image = await kinds.make(await sandbox.subdirectory("image"));
      size = image.layers.reduce((sum, layer) => sum + layer.size, 0);
      name = await pushImage(image, registry.host, "test/kinds");
      await clip(["index", "create", name, "--push", "--plain-http"]);
      stage = await startStage(sandbox, {
        ...{ generation, registry, mode: "auto", asDocumented: true },
        // Nothing names the registry's port to clip but what containerd sends.
        ...(generation === "2" && { settings: { registry: { host: [] } } }),
      });
    });

    after(() => sandbox.close());

    test("lets nerdctl, or ctr 2.x, start a container lazily", async () => {
      const { containerd } = stage;
      registry.reset();
      const read = ["cat", "/srv/small"];
      let output: string;
      if (generation === "1") {
        const options = ["--snapshotter", "clip", "run", "--rm", "--net", "none"];
        output = await containerd.nerdctl([...options, name, ...read]);
      } else {
        await containerd.ctr(["image", "pull", "--plain-http", "--snapshotter", "clip", name]);
        const options = ["run", "--rm", "--snapshotter", "clip"];
        output = await containerd.ctr([...options, name, "once", ...read]);
      }
      assert.equal(output, "small");
      const fetched = registry.blobBytes();
      assert.ok(fetched < size / 2, `${fetched} of ${size} bytes were fetched`);
      await assertNothingLeft(stage);
    });

    test("has the CRI pull with clip", async () => {
      const cri = new CriClient(stage.containerd);
      try {
        await cri.pull(name);
        const snapshots = await stage.containerd.snapshots("clip");
        assert.equal(snapshots.length, 1);
        await cri.removeImage(name);
      } finally {
        cri.close();
      }
      await assertNothingLeft(stage);
    });
  });
}
