"""When a network has no address left, who has them is said, with what to do about each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sandboxd import disclosure
from sandboxd.errors import Exhausted, NotReady, PluginFailed
from sandboxd.pods import holders
from sandboxd.pods.teardown import remove_sandbox
from tests.fakes.bundle import Bundle, pod_config
from tests.fakes.points import Point
from tests.unit.pods.conftest import LogLines, RunPod
from tests.unit.pods.pooled import filled, with_pool

FULL = "CNI plugin bridge failed on ADD: no IP addresses available in range set"
REFUSED = PluginFailed(plugin="bridge", command="DEL", code=7, msg="no luck")


def use(fakes: Bundle, data: Path) -> None:
    """The network's addresses are host-local's, recorded below `data`."""
    plugin = {"type": "bridge", "ipam": {"type": "host-local", "dataDir": str(data)}}
    conflist = {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}
    Path(fakes.config.network.conf_dir, "10-pods.conflist").write_text(json.dumps(conflist))


async def refused(fakes: Bundle) -> str:
    """What a pod is told that gets no address."""
    fakes.points.reset()
    fakes.points.fail(Point("cni.add", 0), Exhausted(FULL))
    with pytest.raises(Exhausted) as caught:
        await fakes.ready_pod(pod_config("newcomer"))
    told = disclosure.whole(caught.value)
    assert told.startswith(f"{FULL}; next: ")
    return told.removeprefix(f"{FULL}; next: ")


async def test_each_kind_of_holder_is_named_with_the_next_step(
    fakes: Bundle, run_pod: RunPod, log_lines: LogLines, tmp_path: Path
) -> None:
    use(fakes, tmp_path)
    running, ended, owing = [await run_pod(name) for name in ("running", "ended", "owing")]
    fakes.node.ledger.update_sandbox(ended, exited_at=5)
    fakes.points.fail_always("cni.delete", REFUSED)
    await remove_sandbox(fakes.node, owing)
    (tmp_path / "pods").mkdir()
    for number, owner in enumerate((running, ended, owing, "c0ffee" * 10)):
        (tmp_path / "pods" / f"10.88.0.{number}").write_text(f"{owner}\r\neth0")

    assert await refused(fakes) == (
        "free some of its addresses, which are held by 1 running pod (default/running), "
        "1 pod that ended and were not stopped (default/ended: remove them), "
        "1 pod whose DEL failed (default/owing: see `sandboxctl debts`), "
        f"1 container that sandboxd does not know (c0ffeec0ffee; see {tmp_path}/pods: if it is no other runtime's, "
        "remove the files that name it); or widen its range"
    )


async def test_prepared_pods_are_not_taken_for_running_ones(fakes: Bundle, tmp_path: Path) -> None:
    use(fakes, tmp_path)
    await filled(fakes, 2)
    with_pool(fakes, 0)  # then none gives way

    assert "held by 2 prepared pods (pool.size);" in await refused(fakes)


async def test_of_many_a_few_are_named(fakes: Bundle, run_pod: RunPod) -> None:
    for number in range(7):
        await run_pod(f"p{number}")

    words = await refused(fakes)

    names = ", ".join(f"default/p{number}" for number in range(holders.SHOWN))
    assert (
        words
        == f"free some of its addresses, which are held by 7 running pods ({names} and 2 more); or widen its range"
    )


async def test_pods_of_another_network_are_not_blamed_and_nobody_is_when_none_is_known(
    fakes: Bundle, run_pod: RunPod
) -> None:
    await run_pod("elsewhere")
    (attachment,) = fakes.node.ledger.attachments
    fakes.node.ledger.remove_attachment(attachment)
    fakes.node.ledger.put_attachment(replace(attachment, network="another"))

    assert await refused(fakes) == (
        "widen its range, or ask its IPAM plugin: sandboxd knows of nothing that holds its addresses"
    )


async def test_any_other_failure_is_told_as_it_is(fakes: Bundle) -> None:
    fakes.points.fail(Point("cni.add", 0), NotReady("not now"))
    with pytest.raises(NotReady, match=r"^not now$"):
        await fakes.ready_pod(pod_config())
