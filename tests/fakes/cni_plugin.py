#!/usr/bin/env -S python3 -IS
"""A CNI plugin that does what its script says and writes down how it was called. Standard library only.

Install it under any plugin name: copy or link this file to `<dir>/<name>` and set its executable bit, or let
`install(dir, name, script)` below do so. Everything it reads and writes lies beside it, so that no environment
is needed:

    <dir>/<name>.script.json    what to do; without it every call succeeds with the defaults below
    <dir>/calls.jsonl           one line per call, appended before anything is done, shared by all fakes of <dir>,
                                so that the order of the lines is the order of the calls

A line is `{"plugin": name, "command": "ADD", "n": 0, "pid": 123, "env": {…whole environment…}, "stdin": "…"}`; `n`
counts the calls of this plugin with this command from 0.

The script maps a command to a list of actions; call `n` does the n-th, and the last one repeats:

    {"versions": ["1.0.0", "1.1.0"],              # the answer to VERSION; by default all of 0.3.0 … 1.1.0
     "ADD": [{"error": {"code": 11, "msg": "try again"}}, {}],
     "DEL": [{"hang": true}]}

An action is an object; its keys are obeyed in this order, and none means success:

    "stderr": "text"        write it to stderr
    "touch": "path"         create this (empty) file; relative paths are beside the plugin, here and below
    "grandchild": "path"    start a child that lives until killed, holding stdout and stderr; its pid goes to path
    "wait_for": "path"      wait until this file exists (at most 600 s)
    "hang": true            do not return until killed (at most 600 s)
    "stdout": "text"        print exactly this instead of a result or error
    "error": {…}            print this as the error object (cniVersion is filled in) and exit 1 unless "exit" is given
    "result": {…}           print this as the result (cniVersion is filled in)
    "passthrough": true     print prevResult as the result; also the default for ADD when there is one
    "signal": 9             die of this signal
    "exit": 3               exit with this status

Default for ADD without prevResult: an interface CNI_IFNAME inside CNI_NETNS with "address" (a key of the action, by
default 10.88.0.2/16). Nothing is printed by default for DEL, CHECK, STATUS and GC.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from typing import Any

DEFAULT_VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


def install(directory: str, name: str, script: dict[str, Any] | None = None) -> str:
    """Put this plugin into `directory` as `name`; the path of the executable. Replaces an earlier script."""
    path = os.path.join(directory, name)
    if not os.path.lexists(path):
        with open(__file__, encoding="utf-8") as source, open(path, "w", encoding="utf-8") as target:
            target.write(source.read())
        os.chmod(path, 0o755)
    _write(f"{path}.script.json", json.dumps(script or {}))
    return path


def calls(directory: str) -> list[dict[str, Any]]:
    """What the fakes of `directory` were asked, in order; `stdin` is parsed."""
    try:
        with open(os.path.join(directory, "calls.jsonl"), encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
    for line in lines:
        line["stdin"] = json.loads(line["stdin"]) if line["stdin"] else None
    return lines


def main() -> int:
    directory, name = os.path.split(os.path.abspath(sys.argv[0]))
    command = os.environ.get("CNI_COMMAND", "")
    stdin = sys.stdin.read()
    number = _record(directory, name, command, stdin)
    try:
        with open(os.path.join(directory, f"{name}.script.json"), encoding="utf-8") as file:
            script = json.load(file)
    except FileNotFoundError:
        script = {}
    actions = script.get(command) or [{}]
    return _act(directory, actions[min(number, len(actions) - 1)], command, stdin, script)


def _record(directory: str, name: str, command: str, stdin: str) -> int:
    with open(os.path.join(directory, "calls.jsonl"), "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        earlier = [json.loads(line) for line in file]
        number = sum(1 for call in earlier if (call["plugin"], call["command"]) == (name, command))
        call = {"plugin": name, "command": command, "n": number, "pid": os.getpid()}
        file.write(json.dumps({**call, "env": dict(os.environ), "stdin": stdin}) + "\n")
    return number


def _act(directory: str, action: dict[str, Any], command: str, stdin: str, script: dict[str, Any]) -> int:
    sys.stderr.write(action.get("stderr", ""))
    sys.stderr.flush()
    if "touch" in action:
        _write(os.path.join(directory, action["touch"]), "")
    if "grandchild" in action:
        child = subprocess.Popen(["sleep", "600"])
        _write(os.path.join(directory, action["grandchild"]), str(child.pid))
    if "wait_for" in action:
        _wait(lambda: os.path.exists(os.path.join(directory, action["wait_for"])), 600)
    if action.get("hang"):
        _wait(lambda: False, 600)
    if "stdout" in action:
        sys.stdout.write(action["stdout"])
    elif "error" in action:
        print(json.dumps({"cniVersion": "1.0.0", **action["error"]}))
    else:
        answer = _answer(action, command, json.loads(stdin or "{}"), script)
        if answer is not None:
            print(json.dumps(answer))
    sys.stdout.flush()
    if "signal" in action:
        os.kill(os.getpid(), action["signal"])
    return int(action.get("exit", 1 if "error" in action else 0))


def _answer(
    action: dict[str, Any], command: str, conf: dict[str, Any], script: dict[str, Any]
) -> dict[str, Any] | None:
    version = conf.get("cniVersion", "1.0.0")
    if command == "VERSION":
        return {"cniVersion": version, "supportedVersions": script.get("versions", DEFAULT_VERSIONS)}
    if "result" in action:
        return {"cniVersion": version, **action["result"]}
    previous: dict[str, Any] | None = conf.get("prevResult")
    if action.get("passthrough"):
        return previous
    if command != "ADD":
        return None
    if previous is not None:
        return previous
    address: dict[str, Any] = {"address": action.get("address", "10.88.0.2/16"), "interface": 0}
    if version.startswith("0."):
        address["version"] = "6" if ":" in address["address"] else "4"
    inside = {"name": os.environ["CNI_IFNAME"], "sandbox": os.environ["CNI_NETNS"], "mac": "02:00:00:00:00:01"}
    return {"cniVersion": version, "interfaces": [inside], "ips": [address], "dns": {}}


def _write(path: str, text: str) -> None:
    # Renamed into place: whoever waits for the file must not read half of it.
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


def _wait(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
