import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { isClipError } from "../base/errors.ts";
import { copyDescriptor, sendDatagram } from "./descriptors.ts";

const directory = mkdtempSync(join(tmpdir(), "clip-descriptors-"));
after(() => rmSync(directory, { recursive: true }));
const hasPython = spawnSync("python3", ["--version"]).status === 0;

test("a descriptor of another process can be copied", async (context) => {
  const file = join(directory, "held");
  writeFileSync(file, "held by another process");
  const descriptor = openSync(file, "r");
  const child = spawn("sleep", ["60"], { stdio: ["ignore", "ignore", "ignore", descriptor] });
  closeSync(descriptor);
  context.after(() => child.kill("SIGKILL"));
  await once(child, "spawn");
  const copy = copyDescriptor(child.pid ?? 0, 3);
  rmSync(file);
  assert.equal(readFileSync(copy, "utf8"), "held by another process");
  closeSync(copy);
  assert.throws(
    () => copyDescriptor(child.pid ?? 0, 77),
    (error) => isClipError(error, "SYSTEM_CALL"),
  );
});

const receiver = `
import array, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name = sys.argv[1]
server.bind("\\0" + name[1:] if name.startswith("@") else name)
print("ready", flush=True)
for _ in range(2):
    data, control, _, _ = server.recvmsg(1000, socket.CMSG_SPACE(4))
    descriptors = array.array("i")
    for level, kind, bytes in control:
        descriptors.frombytes(bytes[:4])
    text = [os.pread(fd, 100, 0).decode() for fd in descriptors]
    print(data.decode(), *text, flush=True)
`;

for (const address of [join(directory, "socket"), `@clip-descriptors-${process.pid}`]) {
  const kind = address.startsWith("@") ? "abstract" : "ordinary";
  test(
    `datagrams and descriptors reach a socket with an ${kind} name`,
    { skip: !hasPython },
    async (context) => {
      const child = spawn("python3", ["-c", receiver, address]);
      context.after(() => child.kill("SIGKILL"));
      let output = "";
      child.stdout.on("data", (data) => (output += String(data)));
      await once(child.stdout, "data");
      const file = join(directory, "sent");
      writeFileSync(file, "contents");
      const descriptor = openSync(file, "r");
      sendDatagram(address, "FDSTORE=1", descriptor);
      sendDatagram(address, "READY=1");
      closeSync(descriptor);
      await once(child, "close");
      assert.deepEqual(output.trim().split("\n"), ["ready", "FDSTORE=1 contents", "READY=1"]);
    },
  );
}

test("a datagram to a socket that is not there fails", () => {
  assert.throws(
    () => sendDatagram(join(directory, "nobody"), "READY=1"),
    (error) => isClipError(error, "SYSTEM_CALL"),
  );
});
