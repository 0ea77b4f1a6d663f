import assert from "node:assert/strict";
import { test } from "node:test";
import type { FuseLayer } from "../fuse/session.ts";
import { ServedLayers } from "./served-layers.ts";

function layer(number: number): FuseLayer {
  const [spanStarts, spanPresent] = [new Float64Array(1), new Uint8Array(0)];
  return { number, size: 0, dataPath: `/${number}`, spanStarts, spanPresent };
}

test("a session that opens is told what has changed since it asked", () => {
  const served = new ServedLayers();
  const [kept, changed, gone, late] = [layer(1), layer(2), layer(3), layer(4)];
  for (const early of [kept, changed, gone]) served.addLayer(early);
  assert.deepEqual(served.early(), [kept, changed, gone]);
  const other = layer(2);
  served.replaceLayer(other);
  served.removeLayer(3);
  served.addLayer(late);
  const told: unknown[] = [];
  served.attach({
    addLayer: (added) => told.push(["add", added]),
    replaceLayer: (replaced) => told.push(["replace", replaced]),
    removeLayer: (number) => told.push(["remove", number]),
  });
  assert.deepEqual(told, [
    ["remove", 3],
    ["replace", other],
    ["add", late],
  ]);
});
