import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isClipError } from "../base/errors.ts";
import { formatReference, hostPort, isLoopback, parseReference } from "./reference.ts";

const digest = `sha256:${"0".repeat(64)}`;

test("names get docker's defaults", () => {
  for (const [text, full] of [
    ["alpine", "docker.io/library/alpine:latest"],
    ["alpine:3", "docker.io/library/alpine:3"],
    ["team/app", "docker.io/team/app:latest"],
    ["index.docker.io/team/app", "docker.io/team/app:latest"],
    ["localhost/app", "localhost/app:latest"],
    ["localhost:5000/app", "localhost:5000/app:latest"],
    ["registry.example.com/a/b/c:v1.2", "registry.example.com/a/b/c:v1.2"],
    ["host:5000/app", "host:5000/app:latest"],
    ["host:5000", "docker.io/library/host:5000"],
    ["[::1]:5000/app:1", "[::1]:5000/app:1"],
    [`alpine@${digest}`, `docker.io/library/alpine@${digest}`],
    [`alpine:3@${digest}`, `docker.io/library/alpine:3@${digest}`],
    ["a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest"],
  ] as const) {
    assert.equal(formatReference(parseReference(text)), full, text);
  }
});

test("what is no name is refused", () => {
  for (const text of [
    ...["", "/", "a//b", "UPPER", "a:", "a:b:c", "a@sha256:0", "a@", "../a", "host:5000/"],
    ...["a/../b", "a".repeat(256), `a:${"t".repeat(129)}`, "a b", "a\n", "http://a/b", "[::1/app"],
    ...["[:1]/app", "[1:2:3]:5000/app", "a.b:65536/app", "999.1.1.1/app"],
  ]) {
    assert.throws(
      () => parseReference(text),
      (error) => isClipError(error, "ARGUMENT_INVALID"),
      text,
    );
  }
});

test("what is understood is understood again in its full form", () => {
  const text = fc.string({ unit: fc.constantFrom(...Array.from("ab.:/@-_0[]")), maxLength: 30 });
  fc.assert(
    fc.property(text, (text) => {
      try {
        const reference = parseReference(text);
        assert.deepEqual(parseReference(formatReference(reference)), reference);
      } catch (error) {
        assert.ok(isClipError(error, "ARGUMENT_INVALID"), String(error));
      }
    }),
  );
});

test("loopback hosts and ports are told apart from others", () => {
  for (const host of ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000"]) {
    assert.ok(isLoopback(host), host);
  }
  for (const host of ["localhost.example.com", "1127.0.0.1", "128.0.0.1", "[::2]", "127.0.0.1.x"]) {
    assert.ok(!isLoopback(host), host);
  }
  assert.equal(hostPort("a:443"), "443");
  assert.equal(hostPort("[::1]"), undefined);
  assert.equal(hostPort("[::1]:80"), "80");
});
