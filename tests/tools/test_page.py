"""The page of `explain --html` in a real browser: everything is there, visible, where it belongs, in both schemes."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from sandboxd.cli.page import page
from sandboxd.pb.cri.v1 import api_pb2 as cri
from tests.e2e.test_sandboxctl import Ctl
from tests.pods import container_config, pod_config, run_container, run_pod
from tests.testbed import ROOT, Testbed
from tests.tools.browser import Browser
from tests.unit.cli import told

pytestmark = [pytest.mark.tools, pytest.mark.e2e]

SHOTS = ROOT / "build" / "page"
# A network with one address, which the first pod takes.
FULL = {
    "cniVersion": "1.0.0",
    "name": "tiny",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "tiny0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.0.99.0/29", "rangeStart": "10.0.99.2", "rangeEnd": "10.0.99.2"}]],
            },
        }
    ],
}
BOX = "(e => { const r = e.getBoundingClientRect(); return {x: r.x, y: r.y + scrollY, w: r.width, h: r.height}; })"
# What is folded still has its place, but is not visible.
BOXES = """[...document.querySelectorAll(%s)].map(
    e => ({...%s(e), text: e.textContent, fill: getComputedStyle(e).fill, seen: e.checkVisibility()}))"""
Box = dict[str, Any]


@pytest.fixture(scope="module")
def containerd_flavour() -> str:
    """One is enough: the page is made from records."""
    return "debian"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, containerd_bin: Path | None) -> Iterator[dict[str, Any]]:
    """The pages of a pod with bridge and portmap, and of one for which no address was left; and what is so."""
    place = tmp_path_factory.mktemp("pages")
    with Testbed(containerd_bin=containerd_bin) as bed:
        bed.default_network()
        bed.start_daemon()
        bed.load_image("busybox")
        ctl = Ctl(bed)
        config = named("web", port_mappings=[cri.PortMapping(container_port=80, host_port=8080)])
        web = run_pod(bed, config)
        run_container(bed, web, container_config("sleeper", "busybox", ["sleep", "1000"]))
        bed.write("/etc/cni/net.d/00-tiny.conflist", json.dumps(FULL))
        run_pod(bed, named("first"))
        with pytest.raises(grpc.RpcError):
            run_pod(bed, named("full"))
        for name in ("web", "full"):
            ctl("explain", name, "--html", str(place / f"{name}.html"))
        links = json.loads(bed.run(["ip", "-json", "link", "show", "master", "sbx0"]).stdout)
        yield {
            "web": place / "web.html",
            "full": place / "full.html",
            "recorded": {name: json.loads(ctl("explain", name, "-o", "json")) for name in ("web", "full")},
            "veth": links[0]["ifname"],
        }


def named(name: str, **changes: Any) -> cri.PodSandboxConfig:
    config = pod_config("", **changes)
    config.metadata.name = name
    return config


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as made:
        yield made


def boxes(browser: Browser, selector: str) -> list[Box]:
    """Where the elements are on the page, with their text and colour."""
    found: list[Box] = browser.evaluate(BOXES % (json.dumps(selector), BOX))
    return found


def unfold(browser: Browser) -> None:
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", colour)[:3])


def overlap(one: Box, other: Box) -> bool:
    """Whether two texts cover each other by more than their line boxes may touch."""
    across = min(one["x"] + one["w"], other["x"] + other["w"]) - max(one["x"], other["x"])
    down = min(one["y"] + one["h"], other["y"] + other["h"]) - max(one["y"], other["y"])
    return bool(across > 1 and down > 3)


def demand_legible(browser: Browser, width: int) -> None:
    """Everything is within the window, and no text of the drawing is on another or outside of it."""
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    (drawing,) = boxes(browser, "svg.drawing")
    texts = boxes(browser, "svg.drawing text")
    assert texts
    for each in texts:
        assert each["seen"] and each["w"] > 0 and each["h"] > 0, each
        assert drawing["x"] <= each["x"] and each["x"] + each["w"] <= drawing["x"] + drawing["w"], each
        assert drawing["y"] <= each["y"] and each["y"] + each["h"] <= drawing["y"] + drawing["h"], each
    assert not [
        (one["text"], other["text"]) for one, other in itertools.combinations(texts, 2) if overlap(one, other)
    ]


def steps_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [*answer["steps"], *(step for each in answer["operations"] for step in each["steps"])]


@pytest.mark.parametrize("name", ["web", "full"])
def test_every_step_and_every_execution_is_visible(pages: dict[str, Any], browser: Browser, name: str) -> None:
    browser.open(pages[name])
    recorded = steps_of(pages["recorded"][name])
    shown = browser.evaluate("[...document.querySelectorAll('li.step')].map(e => e.dataset.step)")
    assert sorted(shown) == sorted(each["name"] for each in recorded)
    rows = boxes(browser, "li.step > details > summary")
    assert len(rows) == len(recorded)
    assert all(each["seen"] and each["w"] > 600 and each["h"] > 15 and each["x"] + each["w"] <= 1240 for each in rows)
    bottoms = [each["y"] + each["h"] for each in rows]
    assert all(after["y"] >= bottom - 1 for bottom, after in zip(bottoms, rows[1:], strict=False))

    unfold(browser)

    blocks = boxes(browser, "li.step .block pre")
    assert all(each["seen"] and each["w"] > 100 and each["h"] > 15 for each in blocks)
    text = "\n".join(each["text"] for each in blocks)
    executions = [each["plugin"] for each in recorded if each.get("plugin")]
    assert len(executions) > 1
    for execution in executions:
        assert execution["binary"] in text
        assert all(f"{key}={value}" in text for key, value in execution["env"].items())
    assert text.count("exit status") == len(executions)


def test_the_drawing_has_the_network_as_it_is(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["web"])
    demand_legible(browser, 1240)
    texts = {each["text"] for each in boxes(browser, "svg.drawing text")}
    (attachment,) = pages["recorded"]["web"]["attachments"]
    (address,) = attachment["result"]["ips"]
    gateway = address["gateway"]
    assert {
        "Host", "default/web", "sbx0", gateway, "eth0", address["address"], f"default via {gateway}", pages["veth"],
        ":8080/tcp → 80", "masquerade",
    } <= texts  # fmt: skip
    veth, eth0, host, pod = (
        boxes(browser, f"svg.drawing {each}")[0]
        for each in ("rect.node:nth-of-type(4)", "rect.node:last-of-type", "rect.box:not(.pod)", "rect.box.pod")
    )
    assert host["x"] < veth["x"] and veth["x"] + veth["w"] <= host["x"] + host["w"] + 1
    assert pod["x"] - 1 <= eth0["x"] and eth0["x"] + eth0["w"] < pod["x"] + pod["w"]
    assert host["x"] + host["w"] < pod["x"]


def test_a_failed_pod_has_its_cause_its_next_step_and_how_far_it_got(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["full"])
    demand_legible(browser, 1240)
    (failure,) = boxes(browser, "section.failure")
    assert failure["y"] < 200 and "every address of the network is given out" in failure["text"]
    assert "free some of its addresses" in failure["text"]
    assert "✗ ADD bridge failed: exit status 1" in {each["text"] for each in boxes(browser, "svg.drawing text")}
    assert len(boxes(browser, "svg.drawing rect.node.missing")) == 3
    assert len(boxes(browser, ".bar rect.failed")) == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["web", "full"])
def test_the_picture_has_the_bars_where_the_layout_says(
    pages: dict[str, Any], browser: Browser, name: str, scheme: str
) -> None:
    browser.open(pages[name], scheme=scheme)
    image = browser.screenshot(SHOTS / f"{name}-{scheme}.png")
    ground = rgb(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    card = rgb(browser.evaluate("getComputedStyle(document.querySelector('section.story')).backgroundColor"))
    assert image.getpixel((3, 3)) == ground
    assert (sum(ground) > 3 * 200) == (scheme == "light") and (sum(ground) < 3 * 60) == (scheme == "dark")
    assert len(image.getcolors(1 << 20) or ()) > 50
    bars = boxes(browser, ".row:not(.head) svg.bar rect")
    frames = boxes(browser, ".row:not(.head) svg.bar")
    wide = [(bar, frame) for bar, frame in zip(bars, frames, strict=True) if bar["w"] >= 8]
    assert len(wide) >= 5
    for bar, frame in wide:
        middle = int(bar["y"] + bar["h"] / 2)
        assert near(image, bar["x"] + bar["w"] / 2, middle, rgb(bar["fill"])), bar
        for beside in (bar["x"] - 5, bar["x"] + bar["w"] + 5):
            if frame["x"] < beside < frame["x"] + frame["w"] - 2 and not on_a_line(browser, beside):
                assert near(image, beside, middle, card), (bar, beside)


def near(image: Image.Image, x: float, y: float, colour: tuple[int, ...]) -> bool:
    found = image.getpixel((int(x), int(y)))
    assert isinstance(found, tuple)
    return all(abs(one - other) <= 3 for one, other in zip(found, colour, strict=True))


def on_a_line(browser: Browser, x: float) -> bool:
    """Whether a mark of the scale is there."""
    return any(abs(each["x"] - x) < 3 for each in boxes(browser, ".bar line"))


def test_bars_begin_and_end_when_their_steps_did(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["web"])
    steps = [each for each in pages["recorded"]["web"]["steps"] if each["operation"] == "RunPodSandbox"]
    begin = min(int(each["startedAt"]) for each in steps)
    whole = max(int(each["startedAt"]) + int(each["duration"]) for each in steps) - begin
    first = "document.querySelector('.operation')"
    script = f"[...{first}.querySelectorAll('li.step')].map(e => [e.dataset.step, {BOX}(e.querySelector('rect'))])"
    drawn = browser.evaluate(script)
    frame = boxes(browser, ".row:not(.head) svg.bar")[0]
    in_order = sorted(steps, key=lambda each: (each["name"], int(each["startedAt"])))
    for (name, bar), step in zip(sorted(drawn, key=lambda each: (each[0], each[1]["x"])), in_order, strict=True):
        assert name == step["name"]
        left = frame["x"] + frame["w"] * (int(step["startedAt"]) - begin) / whole
        assert abs(bar["x"] - left) < 3, step
        assert abs(bar["w"] - frame["w"] * int(step["duration"]) / whole) < 3, step


@pytest.mark.parametrize("name", ["web", "full"])
def test_it_loads_nothing_and_the_console_stays_empty(pages: dict[str, Any], browser: Browser, name: str) -> None:
    browser.open(pages[name])
    unfold(browser)
    browser.screenshot(SHOTS / f"{name}-unfolded.png")
    assert browser.requests == [pages[name].as_uri()]
    assert browser.complaints == []


def test_hostile_texts_are_read_and_do_nothing(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page(told.hostile_pod(), told.HOSTILE, told.NOW), encoding="utf-8")
    browser.open(path)
    unfold(browser)
    browser.screenshot(SHOTS / "hostile.png")
    assert browser.requests == [path.as_uri()] and browser.complaints == []
    assert browser.evaluate("document.querySelectorAll('script, img, [onerror]').length") == 0
    assert browser.evaluate("document.body.innerText").count("<script>alert(1)</script>") > 50
    demand_legible(browser, 1240)


def test_what_is_under_way_is_drawn_up_to_now(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "slow.html"
    path.write_text(page(told.pod_under_way(), "default/slow", told.NOW), encoding="utf-8")
    browser.open(path)
    browser.screenshot(SHOTS / "under-way.png")
    demand_legible(browser, 1240)
    frame = boxes(browser, ".row:not(.head) svg.bar")[0]
    going = boxes(browser, ".bar rect.running")
    assert len(going) == 3
    assert all(abs(each["x"] + each["w"] - frame["x"] - frame["w"]) < 2 for each in going)


def test_a_narrow_window_shows_all_of_it(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["full"], width=400)
    browser.screenshot(SHOTS / "full-narrow.png")
    demand_legible(browser, 400)
    for each in boxes(browser, ".row:not(.head) .what"):
        assert each["x"] >= 0 and each["x"] + each["w"] <= 400 and each["w"] > 200


def test_on_paper_the_folds_are_open(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["web"])
    assert not any(each["seen"] for each in boxes(browser, "li.step .block pre"))
    browser.media("print")
    blocks = boxes(browser, "li.step .block pre")
    assert len(blocks) > 5 and all(each["seen"] and each["h"] > 10 for each in blocks)


def test_it_can_be_heard(pages: dict[str, Any], browser: Browser) -> None:
    browser.open(pages["web"])
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    told = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]
    assert [name for role, name in told if role == "heading"][:3] == [
        "default/web running",
        "Network",
        "What was done",
    ]
    drawn = next(name for role, name in told if role in ("image", "img") and "network of default/web" in name)
    (attachment,) = pages["recorded"]["web"]["attachments"]
    assert attachment["ips"][0] in drawn and ":8080/tcp → 80" in drawn
    assert sum(role == "listitem" for role, _ in told) >= len(pages["recorded"]["web"]["steps"])
