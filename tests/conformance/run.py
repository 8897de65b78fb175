"""Run the genuine conformance suite: `python -m tests.conformance.run [options]`.

critest runs against sandboxd on Debian's containerd and on a current one, and, for comparison, against both
containerds' own CRI plugin: each in a test bed of its own, specs in parallel and in random order, one attempt each.
sandboxd is then asked once more for streaming, over WebSocket. build/conformance/ gets summary.json, and of each
run the suite's output, the runtime's log and ginkgo's report.

The last line is the sum of sandboxd's runs. The exit status is 1 when one of its specs failed, or when it passed
fewer than it must. Without a fitting Go toolchain nothing can be run: that is said, and the exit status is 0.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc

if not __package__:  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.audit import leaks, observe
from tests.conformance import build, debian, images, report
from tests.conformance.peers import PEERS, Peer, Served, serving
from tests.conformance.report import DIGEST_REASON, DIGEST_SPEC, Outcome, Run, Spec
from tests.testbed import BedFailed

SETS_UP = "port mapping with host port|NamespaceMode_POD"
OVER_WEBSOCKET = "+websocket"
STREAMING = "Streaming runtime should support streaming interfaces"
WEBSOCKET = ("-websocket-exec", "-websocket-attach", "-websocket-portforward")
WORK = "/run/critest"
SUITE_SECONDS = 900.0
DEFAULT = tuple(name for name, peer in PEERS.items() if not peer.pinned)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="Run the genuine CRI conformance suite.")
    known = f"of {', '.join(PEERS)} (default: all but the pinned ones)"
    parser.add_argument("peers", nargs="*", metavar="PEER", help=known)
    parser.add_argument("--focus", default="", help="only specs that match this regular expression")
    parser.add_argument("--websocket", action="store_true", help="only the streaming specs, over WebSocket")
    parser.add_argument("--parallel", type=int, default=4, help="specs at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="repeat the order of an earlier run")
    parser.add_argument("--out", type=Path, default=build.OUT)
    options = parser.parse_args(arguments)
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"unknown peer {', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    options.out = options.out.resolve()  # in a bed, programs start in the root directory
    if missing := lacks_toolchain():
        print(f"conformance: skipped: {missing}")
        return 0
    try:
        if installed := debian.install():
            print(f"conformance: installed {', '.join(installed)}")
        if build.main(["--out", str(options.out), "--all"]):
            return 1
        layout = images.build(options.out)
    except debian.DebianFailed as exc:
        print(f"conformance: {exc}", file=sys.stderr)
        return 1
    chosen = [PEERS[name] for name in options.peers or DEFAULT]
    runs: dict[str, Run] = {}
    for peer in chosen:
        for name, run in of_peer(peer, layout, options).items():
            runs[name] = run
            sums = ", ".join(f"{run.count(outcome)} {outcome}" for outcome in Outcome)
            print(f"conformance: {name}: {sums} in {run.seconds:.0f} s {run.trouble}".rstrip(), flush=True)
            for spec in run.of(Outcome.FAILED):
                print(f"  failed: {spec.name}: {_first_lines(spec.why)}", flush=True)
    summary = options.out / "summary.json"
    summary.write_text(json.dumps({name: run.document() for name, run in runs.items()}, indent=2) + "\n")
    ours = {name: run for name, run in runs.items() if PEERS[name.removesuffix(OVER_WEBSOCKET)].sandboxd}
    print(f"\nEverything is in {options.out}; {summary.name} has the reasons.\n")
    print(report.table(list(runs.values())))
    whole = not options.focus and not options.websocket
    problems = [f"{name}: {problem}" for name, run in ours.items() if (problem := shortfall(name, run, whole))]
    print("".join(f"\n{problem}" for problem in problems))
    print(report.closing_line(list(ours.values()) or list(runs.values())))
    return 1 if problems else 0


def lacks_toolchain() -> str:
    """Why nothing can be built here, "" when everything can."""
    go = build.toolchain()
    if go is None:
        return "no Go toolchain (install Go to run the conformance suite)"
    needed = max(build.wanted(target)[0] for target in build.TARGETS.values())
    if go < needed:
        return f"Go {'.'.join(map(str, go))} found, {'.'.join(map(str, needed))} or newer is needed"
    return ""


def of_peer(peer: Peer, layout: Path, options: argparse.Namespace) -> dict[str, Run]:
    """All runs against one peer, by name. A whole run against sandboxd must leave its host as it was."""
    runs: dict[str, Run] = {}
    over = f"{peer.name}{OVER_WEBSOCKET}"
    try:
        with serving(peer, options.out, layout, options.out / f"{peer.name}.runtime.log") as served:
            versions = ", ".join(f"{name} {version}" for name, version in served.versions.items())
            title = f"{peer.title} ({versions})"
            if options.websocket or (peer.sandboxd and not options.focus):
                runs[over] = suite(served, over, f"{title}, WebSocket", options, focus=STREAMING, flags=WEBSOCKET)
            if options.websocket:
                return runs
            if options.focus or not peer.sandboxd:
                runs[peer.name] = suite(served, peer.name, title, options, focus=options.focus)
                return runs
            # What is set up once, for the first pod of a host that needs it, stays on purpose.
            suite(served, f"{peer.name}+first-pods", title, options, focus=SETS_UP)
            served.remove_images()
            before = observe(served.bed)
            runs[peer.name] = suite(served, peer.name, title, options)
            served.remove_images()
            left = [line for line in leaks(served.bed, before) if f" {WORK}" not in line]
            runs[peer.name] = replace(runs[peer.name], left=tuple(left))
    except (BedFailed, TimeoutError, grpc.RpcError) as exc:
        known = runs.get(peer.name, Run(title=peer.title, specs=()))
        runs[peer.name] = replace(known, trouble=_first_lines(str(exc)))
    return runs


def suite(
    served: Served, name: str, title: str, options: argparse.Namespace, *, focus: str = "", flags: Sequence[str] = ()
) -> Run:
    """Run critest once."""
    bed = served.bed
    work = f"{WORK}/{name}"
    (bed.path(work) / "tmp").mkdir(parents=True)
    # critest starts `ginkgo` from the PATH to run specs in parallel.
    argv = ["env", f"TMPDIR={work}/tmp", f"PATH={options.out}:{bed.env['PATH']}", str(options.out / "critest")]
    argv += [f"-runtime-endpoint=unix://{served.socket}", f"-parallel={options.parallel}", *flags]
    argv += [f"-ginkgo.json-report={work}/report.json", "-ginkgo.no-color", "-ginkgo.v", "-ginkgo.flake-attempts=1"]
    argv += ["-ginkgo.randomize-all"]
    argv += [f"-ginkgo.skip={DIGEST_SPEC}", f"-ginkgo.timeout={SUITE_SECONDS:.0f}s"]
    if focus:
        argv += [f"-ginkgo.focus={focus}"]
    if options.seed is not None:
        argv += [f"-ginkgo.seed={options.seed}"]
    output = options.out / f"{name}.log"
    began = time.monotonic()
    trouble = ""
    seed = 0
    specs: tuple[Spec, ...] = ()
    with output.open("w", encoding="utf-8") as file:
        print(shlex.join(argv), file=file, flush=True)
        process = bed.popen(served.inside(argv), stdout=file, stderr=file)
        try:
            process.wait(timeout=SUITE_SECONDS + 60)
        except subprocess.TimeoutExpired:
            process.kill()
            trouble = f"critest still ran after {SUITE_SECONDS + 60:.0f} s"
    seconds = time.monotonic() - began
    try:
        found = bed.path(f"{work}/report.json")
        seed, specs = report.read(found)
        if focus:  # the excluded one is in no focus
            specs = tuple(spec for spec in specs if spec.why != DIGEST_REASON)
        shutil.copyfile(found, options.out / f"{name}.report.json")
    except (OSError, ValueError, LookupError) as exc:
        trouble = trouble or f"critest left no report ({exc}); what it said is in {output}"
    return Run(title=title, specs=specs, seconds=seconds, seed=seed, trouble=trouble)


def shortfall(name: str, run: Run, whole: bool) -> str:
    """Why a run of sandboxd is not good enough, "" when it is."""
    if run.trouble:
        return run.trouble
    if failed := run.count(Outcome.FAILED):
        return f"{failed} failed"
    if run.left:
        return f"left behind: {'; '.join(run.left)}"
    passed = run.count(Outcome.PASSED)
    if name.endswith(OVER_WEBSOCKET):
        return "" if passed == 5 else f"{passed} of 5 streaming specs passed over WebSocket"
    least = PEERS[name].least if whole else 1
    return "" if passed >= least else f"{passed} passed, at least {least} are promised"


def _first_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " / ".join(line.strip() for line in lines[:6])[:400]


if __name__ == "__main__":
    sys.exit(main())
