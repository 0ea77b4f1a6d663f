import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { isClipError } from "../../base/errors.ts";
import { openS3Cache } from "./s3-cache.ts";
import { freshKey } from "./testing/content-cache-suite.ts";

const inAnHour = new Date(Date.now() + 3600_000).toISOString();

describe("credentials that are not given come from", () => {
  let server: Server;
  let base: string;
  let directory: string;
  let environment: NodeJS.ProcessEnv;
  /** `Authorization` of the last request to the bucket. */
  let authorization = "";

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), "clip-s3-credentials-"));
    server = createServer((request, response) => {
      request.resume();
      request.once("end", () => {
        if (request.url?.startsWith("/clip/") === true) {
          authorization = request.headers.authorization ?? "";
          response.writeHead(404).end();
        } else identity(request, response);
      });
    });
    await new Promise<void>((resolve) => {
      server.listen(0, "127.0.0.1", resolve);
    });
    const address = server.address();
    base = `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`;
  });
  after(() => {
    server.closeAllConnections();
    server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  beforeEach(() => {
    environment = { ...process.env };
    for (const name of Object.keys(process.env)) {
      if (name.startsWith("AWS_")) delete process.env[name];
    }
    process.env["AWS_CONFIG_FILE"] = join(directory, "config");
    process.env["AWS_SHARED_CREDENTIALS_FILE"] = join(directory, "credentials");
    process.env["AWS_EC2_METADATA_DISABLED"] = "true";
    authorization = "";
  });
  afterEach(() => {
    process.env = environment;
  });

  async function ask(): Promise<void> {
    const cache = await openS3Cache({
      bucket: "clip",
      endpoint: base,
      pathStyle: true,
      attempts: 1,
    });
    try {
      assert.equal(await cache.has(freshKey()), undefined);
    } finally {
      await cache.close();
    }
  }

  test("the environment", async () => {
    process.env["AWS_ACCESS_KEY_ID"] = "from-environment";
    process.env["AWS_SECRET_ACCESS_KEY"] = "secret";
    process.env["AWS_REGION"] = "eu-somewhere-1";
    await ask();
    assert.match(authorization, /Credential=from-environment\/\d+\/eu-somewhere-1\/s3/);
  });

  test("a web identity", async () => {
    const token = join(directory, "token");
    writeFileSync(token, "a.web.token");
    process.env["AWS_WEB_IDENTITY_TOKEN_FILE"] = token;
    process.env["AWS_ROLE_ARN"] = "arn:aws:iam::123456789012:role/clip";
    process.env["AWS_ENDPOINT_URL_STS"] = base;
    await ask();
    assert.match(authorization, /Credential=from-web-identity\//);
  });

  test("the container", async () => {
    process.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = `${base}/container`;
    await ask();
    assert.match(authorization, /Credential=from-container\//);
  });

  test("the instance", async () => {
    delete process.env["AWS_EC2_METADATA_DISABLED"];
    process.env["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = base;
    await ask();
    assert.match(authorization, /Credential=from-instance\//);
  });

  test("nowhere: that is said, and worth no retry", async () => {
    await assert.rejects(ask(), (error) => isClipError(error, "CACHE_DENIED"));
  });
});

/** Plays the security token service, the container's and the instance's metadata service. */
function identity(request: IncomingMessage, response: ServerResponse): void {
  const url = request.url ?? "";
  const keys = (id: string) =>
    JSON.stringify({
      Code: "Success",
      AccessKeyId: id,
      SecretAccessKey: "secret",
      Token: "token",
      Expiration: inAnHour,
    });
  if (url === "/container") response.end(keys("from-container"));
  else if (url === "/latest/api/token") response.end("metadata-token");
  else if (url === "/latest/meta-data/iam/security-credentials/") response.end("role");
  else if (url === "/latest/meta-data/iam/security-credentials/role") {
    response.end(keys("from-instance"));
  } else {
    response.writeHead(200, { "content-type": "text/xml" });
    response.end(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>
      <Credentials><AccessKeyId>from-web-identity</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
      <SessionToken>token</SessionToken><Expiration>${inAnHour}</Expiration></Credentials>
      </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`);
  }
}
