"""Starts a service as systemd does, and stores descriptors for it (sd_notify(3), sd_listen_fds(3)).

    service_manager.py NOTIFY_SOCKET PROGRAM ARGUMENTS...

Reads commands from its input: "start"; "kill" ends all processes of the service at once; "stop" sends
SIGTERM to the first one. Each is answered on its output by "started", "killed" or "stopped CODE";
there is a line "notified TEXT" for each message of the service, besides.
"""
import array
import fcntl
import os
import signal
import socket
import sys
import threading

notify_path, command = sys.argv[1], sys.argv[2:]
stored = {}
main = 0


def say(text):
    print(text, flush=True)


def receive(server):
    while True:
        data, control, _, _ = server.recvmsg(4096, socket.CMSG_SPACE(4))
        lines = data.decode().split("\n")
        for level, kind, value in control:
            descriptors = array.array("i")
            descriptors.frombytes(value[:4])
            names = [line[7:] for line in lines if line.startswith("FDNAME=")]
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and "FDSTORE=1" in lines:
                stored[names[0]] = descriptors[0]
        say("notified " + " ".join(lines))


def start():
    global main
    main = os.fork()
    if main > 0:
        say("started")
        return
    os.setsid()
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.environ["NOTIFY_SOCKET"] = notify_path
    if stored:
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ["LISTEN_FDS"] = str(len(stored))
        os.environ["LISTEN_FDNAMES"] = ":".join(stored)
        # Copies first, out of the way of those that they are to become.
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 50) for descriptor in stored.values()]
        for at, copy in enumerate(copies):
            os.dup2(copy, 3 + at)
            os.close(copy)
    os.execv(command[0], command)


server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind(notify_path)
# Out of the way of the descriptors that are passed on.
kept = os.dup(server.fileno())
server.close()
os.dup2(kept, 100, inheritable=False)
os.close(kept)
server = socket.socket(fileno=100)
threading.Thread(target=receive, args=(server,), daemon=True).start()
for line in sys.stdin:
    if line == "start\n":
        start()
    if line == "kill\n":
        os.killpg(main, signal.SIGKILL)
        os.waitpid(main, 0)
        say("killed")
    if line == "stop\n":
        os.kill(main, signal.SIGTERM)
        _, status = os.waitpid(main, 0)
        say("stopped %d" % os.waitstatus_to_exitcode(status))
