import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { digestOf } from "../base/digest.ts";
import { isClipError } from "../base/errors.ts";
import { newClient, serveBlob } from "./fake-server.ts";

// Of a server at 127.0.0.1 that nobody trusts; good for a hundred years.
const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgswNwsQ5j1/cOOmUB
9NJvyhVBwY5ZW4Z2cDhxixlkvm2hRANCAAQn4iyqIuDBnmJvbdPAzg3Wua1vt8XN
ZtcHkoe18QJq/fU+1fV24RcTiA2poyucjZ6EVv6cL0+P2pFf57dMWtVk
-----END PRIVATE KEY-----`;
const cert = `-----BEGIN CERTIFICATE-----
MIIBkTCCATagAwIBAgIUCTQJlenLlKW5amI5+SUNie20gEgwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJY2xpcCB0ZXN0MCAXDTI2MTEyMTA2MzQzOFoYDzIxMjYxMDI4
MDYzNDM4WjAUMRIwEAYDVQQDDAljbGlwIHRlc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQn4iyqIuDBnmJvbdPAzg3Wua1vt8XNZtcHkoe18QJq/fU+1fV24RcT
iA2poyucjZ6EVv6cL0+P2pFf57dMWtVko2QwYjAdBgNVHQ4EFgQUkwTgFNXP0H6N
O7oloaCzfhXUOEAwHwYDVR0jBBgwFoAUkwTgFNXP0H6NO7oloaCzfhXUOEAwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0kAMEYC
IQCGwo7WNqsh1yQRU/ApZCAoy6vo9FLlyZnnAsly+nCRKQIhAPZ+D3fHp7sH0xfI
6HwfwWmYsJia5mt0UuDs4r0dr4Pj
-----END CERTIFICATE-----`;

const content = Buffer.from("the content of a blob");
const directory = mkdtempSync(join(tmpdir(), "clip-tls-"));
const caFile = join(directory, "ca.pem");
writeFileSync(caFile, cert);
const server = https.createServer({ key, cert }, (request, response) =>
  serveBlob(request, response, content),
);
await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
after(() => {
  server.close();
  server.closeAllConnections();
  rmSync(directory, { recursive: true, force: true });
});

async function read(options: { caFile?: string; skipVerify?: boolean }): Promise<string> {
  const client = newClient({ hosts: { [host]: options } });
  const blob = client.blob({ host, name: "a" }, digestOf(content), content.length);
  return (await blob.read(0, 11)).toString();
}

test("a certificate must be trusted: by its authority in a file, or by saying so", async () => {
  assert.equal(await read({ caFile }), "the content");
  assert.equal(await read({ skipVerify: true }), "the content");
});

test("a certificate that nobody trusts is an error with a hint, at once", async () => {
  const otherFile = join(directory, "other.pem");
  writeFileSync(otherFile, "");
  await assert.rejects(read({ caFile: otherFile }), (error) => {
    assert.ok(isClipError(error, "REGISTRY_UNAVAILABLE"));
    assert.match(error.hint ?? "", /ca_file/);
    return true;
  });
});

test("an authority that is put into its file while clip runs is trusted from then on", async () => {
  const file = join(directory, "changing.pem");
  writeFileSync(file, "");
  const client = newClient({ hosts: { [host]: { caFile: file } } });
  const blob = client.blob({ host, name: "a" }, digestOf(content), content.length);
  await assert.rejects(blob.read(0, 11), (error) => isClipError(error, "REGISTRY_UNAVAILABLE"));
  assert.deepEqual(client.counters.of(host).faults, new Map([["certificate", 1]]));
  writeFileSync(file, cert);
  assert.equal((await blob.read(0, 11)).toString(), "the content");
});

test("a certificate file that is missing is named", async () => {
  await assert.rejects(
    read({ caFile: join(directory, "missing.pem") }),
    (error) => isClipError(error, "CONFIG_INVALID") && error.message.includes("missing.pem"),
  );
});
