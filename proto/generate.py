"""Generate `sandboxd/pb` from the contracts in this directory; with `--check`, compare instead of writing.

The compiler lives in a venv of its own under `build/`, pinned below. It is an old one on purpose: code that
protoc 25 generated runs with every protobuf since 4.25, newer protoc would force its own runtime on users.
The pins have wheels for CPython 3.11 and 3.12; with another interpreter pip compiles them, which takes minutes.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROTO = Path(__file__).resolve().parent
ROOT = PROTO.parent
PACKAGE = Path("sandboxd/pb")
TOOLS = ROOT / "build" / "proto-venv"
PINS = ("grpcio-tools==1.62.3", "mypy-protobuf==3.6.0", "protobuf==4.25.9", "setuptools<81")

GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "__init__.py")
SERVICE = re.compile(r"^service\s", re.MULTILINE)
STUB_INIT = re.compile(
    r"^class (\w+)Stub:\n((?: {4}.*\n|\n)*?) {4}def __init__\(self, channel: "
    r"typing\.Union\[grpc\.Channel, grpc\.aio\.Channel\]\) -> None: \.\.\.\n",
    re.MULTILINE,
)
STUB_NEW = r"""class \1Stub:
\2    @typing.overload
    def __new__(cls, channel: grpc.Channel) -> \1Stub: ...
    @typing.overload
    def __new__(cls, channel: grpc.aio.Channel) -> \1AsyncStub: ...
"""


def main() -> int:
    """Write the generated code, or report where it differs; 1 when it does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; list what differs and exit 1")
    check: bool = parser.parse_args().check

    install_tools()
    with tempfile.TemporaryDirectory(prefix="sandboxd-proto-") as scratch:
        fresh = generate(Path(scratch))
    present = read(ROOT / PACKAGE)
    stale = sorted(path for path in fresh.keys() | present.keys() if fresh.get(path) != present.get(path))
    for path in stale:
        if path not in fresh:
            verdict = "has no contract" if check else "removed"
        elif path not in present:
            verdict = "is missing" if check else "written"
        else:
            verdict = "differs" if check else "rewritten"
        print(f"{PACKAGE / path} {verdict}")
        if not check:
            put(ROOT / PACKAGE / path, fresh.get(path))
    if check and stale:
        print("sandboxd/pb does not match proto/: run `make proto` and commit the result", file=sys.stderr)
        return 1
    return 0


def install_tools() -> None:
    """Make the private venv unless one with exactly these pins is there."""
    stamp = TOOLS / "pins"
    wanted = "\n".join(PINS)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    venv.create(TOOLS, clear=True, with_pip=True)
    subprocess.run([TOOLS / "bin" / "python", "-m", "pip", "install", "--quiet", *PINS], check=True)
    stamp.write_text(wanted)


def generate(scratch: Path) -> dict[Path, bytes]:
    """The content of every file that belongs in `sandboxd/pb`, by its path inside it."""
    contracts = sorted(path.relative_to(PROTO) for path in (PROTO / PACKAGE).rglob("*.proto"))
    plugins = [f"--plugin={name}={TOOLS / 'bin' / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python")]
    outputs += [f"--{kind}_out=quiet:{scratch}" for kind in ("mypy", "mypy_grpc")]
    subprocess.run(
        [TOOLS / "bin" / "python", "-m", "grpc_tools.protoc", "-I.", *plugins, *outputs, *contracts],
        cwd=PROTO,
        check=True,
    )
    for contract in contracts:
        grpc = scratch / contract.with_name(f"{contract.stem}_pb2_grpc.pyi")
        if services := len(SERVICE.findall((PROTO / contract).read_text())):
            grpc.write_text(tell_stubs_apart(grpc.read_text(), services))
        else:
            # protoc writes an empty *_pb2_grpc pair for a contract without a service.
            grpc.unlink()
            grpc.with_suffix(".py").unlink()
        for package in (PACKAGE, *(p for p in contract.parents if PACKAGE in p.parents)):
            (scratch / package / "__init__.py").write_text(
                f'"""Generated from proto/{package} by `make proto`; never edited by hand."""\n'
            )
    return read(scratch / PACKAGE)


def tell_stubs_apart(types: str, services: int) -> str:
    """Make the type of `XStub(channel)` follow from the channel: awaitable calls for grpc.aio, plain ones otherwise.

    mypy-protobuf 3 describes the calls of both but makes every stub a plain one; releases that do better need a
    protobuf that the old compiler cannot share a venv with.
    """
    types, changed = STUB_INIT.subn(STUB_NEW, types)
    types, derived = re.subn(r"^class (\w+)AsyncStub:", r"class \1AsyncStub(\1Stub):", types, flags=re.MULTILINE)
    if not changed == derived == services:
        raise SystemExit(f"expected {services} stubs, found {changed} and {derived}: mypy-protobuf writes them anew")
    return types


def read(top: Path) -> dict[Path, bytes]:
    """Every generated file below `top`, by its path inside it."""
    return {path.relative_to(top): path.read_bytes() for pattern in GENERATED for path in top.rglob(pattern)}


def put(path: Path, content: bytes | None) -> None:
    """Give the file this content; None removes it."""
    if content is None:
        path.unlink()
        if all(rest.name == "__pycache__" for rest in path.parent.iterdir()):
            shutil.rmtree(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
