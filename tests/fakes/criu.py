#!/usr/bin/env -S python3 -IS
"""A CRIU that dumps nothing: it speaks to runc as the real one does and does as it is told. Standard library only.

The file `mode` beside it says what; each start is told by a line of its arguments in the file `calls`.

    works    a dump succeeds: one image and a log are written, the processes are left alone
    fails    a dump fails, and the log says why
    hangs    a dump is begun and does not end before runc has gone
    unfit    `criu check` finds that the kernel is not as it must be

runc starts `criu swrk FD` and sends `criu_req` messages on that socket, one in a packet; each is answered with a
`criu_resp`. Source: https://criu.org/RPC and images/rpc.proto of CRIU.
"""

import os
import socket
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DUMP, NOTIFY, FEATURES, VERSION = 1, 6, 9, 10  # criu_req_type
SO_PEERCRED = 17


def fields(data: bytes) -> dict[int, bytes | int]:
    """The numbers and texts of a protobuf message, by field; of a repeated one the last."""
    found: dict[int, bytes | int] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found[key >> 3] = varint()
        elif key & 7 == 2:
            size = varint()
            found[key >> 3] = data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def answer(kind: int, success: bool, rest: bytes = b"") -> bytes:
    """A `criu_resp`: type, success, and what else."""
    return bytes((0x08, kind, 0x10, int(success))) + rest


def dump(connection: socket.socket, options: dict[int, bytes | int], mode: str) -> bytes:
    """Obey `criu_opts`: images_dir_fd is 1, log_file is 10, work_dir_fd is 17; both are files of runc."""
    peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12))[0]
    images = f"/proc/{peer}/fd/{int(options[1])}"
    work = f"/proc/{peer}/fd/{int(options.get(17, options[1]))}"
    os.chdir(work)
    log = options.get(10, b"dump.log")
    assert isinstance(log, bytes)
    with open(log, "w") as file:
        file.write("(00.000001) Dumping\n")
        if mode == "fails":
            file.write("(00.000002) Error (criu/fake.c:1): it was told to fail\n")
    if mode == "fails":
        return answer(DUMP, False)
    if mode == "hangs":
        connection.recv(1)  # the end of runc
        sys.exit(1)
    with open(f"{images}/inventory.img", "wb") as file:
        file.write(b"fake image")
    with open("stats-dump", "wb") as file:
        file.write(b"fake statistics")
    return answer(DUMP, True)


def serve(connection: socket.socket, mode: str) -> None:
    while request := connection.recv(1 << 20):
        message = fields(request)
        kind = message[1]
        if kind == DUMP:
            options = message[2]
            assert isinstance(options, bytes)
            connection.send(dump(connection, fields(options), mode))
            return
        if kind == VERSION:
            connection.send(answer(VERSION, True, bytes((0x52, 4, 0x08, 4, 0x10, 2))))  # version { 4, 2 }
        else:
            connection.send(answer(int(kind), True))


def main() -> int:
    with open(f"{HERE}/calls", "a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    with open(f"{HERE}/mode") as file:
        mode = file.read().strip()
    if sys.argv[1:] == ["check"]:
        if mode == "unfit":
            print("Error (criu/fake.c:2): this kernel will not do", file=sys.stderr)
            return 1
        print("Looks good.")
    elif sys.argv[1:2] == ["swrk"]:
        with socket.socket(fileno=int(sys.argv[2])) as connection:
            serve(connection, mode)
    else:
        print("Version: 4.2")
    return 0


if __name__ == "__main__":
    sys.exit(main())
