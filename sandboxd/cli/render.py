"""Answers → output: tables for people, JSON and YAML for programs. Pure; the time is an argument."""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import yaml
from google.protobuf import json_format
from google.protobuf.message import Message
from rich.table import Table
from rich.text import Text

from sandboxd.cli.names import SHORT_ID
from sandboxd.pb.cri.v1 import api_pb2 as cri
from sandboxd.pb.host.v1 import host_pb2 as host

NONE = "-"

# protobuf 5.26 renamed the option that prints fields with default values.
_ALL_FIELDS: dict[str, Any] = {
    next(
        name
        for name in ("always_print_fields_with_no_presence", "including_default_value_fields")
        if name in inspect.signature(json_format.MessageToDict).parameters
    ): True
}


# --- for programs ----------------------------------------------------------------------------------------------


def as_dict(message: Message) -> dict[str, Any]:
    """The message in protobuf's JSON form: camelCase keys, every field, 64-bit numbers as strings."""
    return json_format.MessageToDict(message, **_ALL_FIELDS)


def info_dict(info: Mapping[str, str]) -> dict[str, Any]:
    """A verbose answer's `info`, each value parsed where it is JSON."""
    return {key: _parsed(value) for key, value in info.items()}


def explain_dict(answer: host.ExplainResponse) -> dict[str, Any]:
    """Explain's answer in protobuf's JSON form, but with plugin input and output as JSON or text, not base64."""
    data = as_dict(answer)
    open_plugins(data["steps"], answer.steps)
    for item, operation in zip(data["operations"], answer.operations, strict=True):
        open_plugins(item["steps"], operation.steps)
    for item, attachment in zip(data["attachments"], answer.attachments, strict=True):
        item |= {"config": _parsed(attachment.config), "result": _parsed(attachment.result)}
    return data


def open_plugins(items: Iterable[dict[str, Any]], steps: Iterable[host.Step]) -> None:
    """Put the input and output of plugins into the JSON of steps as what they are."""
    for item, step in zip(items, steps, strict=True):
        if step.HasField("plugin"):
            plugin = step.plugin
            item["plugin"] |= {
                "stdin": _parsed(plugin.stdin),
                "stdout": _parsed(plugin.stdout),
                "stderr": plugin.stderr.decode(errors="replace"),
            }


def dump(data: Any, form: str) -> str:
    """`data` as "json" or "yaml", with sorted keys and a final newline; control characters are escaped."""
    if form == "yaml":
        text = _yaml(data, as_it_is=True)
        return text if _harmless(text, keep="\n") else _yaml(data, as_it_is=False)
    # json.dumps escapes ASCII control characters, and others occur only inside strings.
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if _harmless(text, keep="\n"):
        return text
    return "".join(each if each == "\n" or each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    """The character as an escape in a JSON string, DEL included."""
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _yaml(data: Any, *, as_it_is: bool) -> str:
    return yaml.safe_dump(data, sort_keys=True, allow_unicode=as_it_is, default_flow_style=False)


def _parsed(value: str | bytes) -> Any:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- for people: single values ---------------------------------------------------------------------------------


def printable(text: str, *, keep: str = "\n\t") -> str:
    """The text with control characters escaped, except those in `keep`."""
    if _harmless(text, keep):
        return text
    return "".join(
        each if each in keep or each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def text_line(*parts: str | tuple[str, str]) -> Text:
    """One line of parts, each with a style or without; what the daemon says has no control characters or markup."""
    made = Text()
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, "")
        made.append(printable(text, keep="\t"), style=style)
    return made


def _harmless(text: str, keep: str) -> bool:
    """Whether the text has only printable characters and those in `keep`."""
    for each in keep:
        text = text.replace(each, "")
    return text.isprintable()


def age(moment: int, now: int) -> str:
    """The time since `moment`, in the largest unit that fits: "now", "5s ago", "3h ago", "12d ago"."""
    seconds = (now - moment) // 10**9
    if moment <= 0:
        return NONE
    if seconds < 1:
        return "now"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit} ago"
    return f"{seconds}s ago"


def size(count: int) -> str:
    """Bytes in decimal units with three digits, as in crictl and docker: "187MB", "4.27MB"."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}PB"


def span(nanoseconds: int) -> str:
    """A duration with three digits: "85.3 ms", "1.24 s", "250 µs"."""
    number, unit = nanoseconds / 1000, "µs"
    if number >= 999.5:
        number, unit = number / 1000, "ms"
    if unit == "ms" and number >= 999.5:
        number, unit = number / 1000, "s"
    digits = f"{number:.3g}" if number < 999.5 else f"{number:.0f}"
    return f"{digits} {unit}"


def pod_state(state: cri.PodSandboxState.ValueType) -> str:
    """ "Ready" or "NotReady"."""
    return "Ready" if state == cri.SANDBOX_READY else "NotReady"


def container_state(state: cri.ContainerState.ValueType, status: cri.ContainerStatus | None = None) -> str:
    """ "Created", "Running", "Exited (3)" where the status is known, "Unknown"."""
    word = cri.ContainerState.Name(state).removeprefix("CONTAINER_").capitalize()
    if state == cri.CONTAINER_EXITED and status is not None:
        return f"{word} ({status.exit_code})"
    return word


def address(status: cri.PodSandboxStatus | None) -> str:
    """The pod's first IP; "host" if it shares the host's network, "-" if it has none."""
    if status is None:
        return NONE
    if status.linux.namespaces.options.network == cri.NODE:
        return "host"
    return status.network.ip or NONE


def addresses(status: cri.PodSandboxStatus) -> list[str]:
    """All IPs of the pod, the primary one first."""
    return [ip for ip in (status.network.ip, *(each.ip for each in status.network.additional_ips)) if ip]


def port(mapping: cri.PortMapping) -> str:
    """ "8080→80/tcp", with the host address where there is one."""
    protocol = cri.Protocol.Name(mapping.protocol).lower()
    host_ip = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip
    front = f"{host_ip}:{mapping.host_port}" if host_ip else str(mapping.host_port)
    return f"{front}→{mapping.container_port}/{protocol}"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name matches one of the patterns (shell wildcards), or there are none."""
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# --- for people: tables ----------------------------------------------------------------------------------------


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Columns under their headings, without rules; cells are single lines of plain text, never markup."""
    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", collapse_padding=True)
    for heading in columns:
        made.add_column(heading, no_wrap=True, overflow="ellipsis")
    for row in rows:
        made.add_row(*(Text(printable(cell, keep="") or NONE) for cell in row))
    return made


def facts(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one a line, without headings."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(Text(name), Text(printable(value) or NONE))
    return made


def pods_table(
    pods: Iterable[cri.PodSandbox],
    statuses: Mapping[str, cri.PodSandboxStatus],
    now: int,
    owing: Collection[str] = (),
    unmade: Iterable[tuple[str, ...]] = (),
) -> Table:
    """The output of `pods`; `owing` are the ids of those that owe their network a DEL, `unmade` further rows."""
    return table(
        ("POD ID", "NAME", "NAMESPACE", "STATE", "IP", "CREATED", "RUNTIME"),
        itertools.chain(
            (
                (
                    pod.id[:SHORT_ID],
                    pod.metadata.name,
                    pod.metadata.namespace,
                    pod_state(pod.state) + (" (owes DEL)" if pod.id in owing else ""),
                    address(statuses.get(pod.id)),
                    age(pod.created_at, now),
                    pod.runtime_handler or "(default)",
                )
                for pod in pods
            ),
            unmade,
        ),
    )


def unmade_pods(
    answer: host.ListOperationsResponse, pods: Iterable[cri.PodSandbox], now: int
) -> Iterable[tuple[str, ...]]:
    """Rows for `pods_table`: the pods that are being made, and those that could not be made and do not exist."""
    taken = {f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in pods}
    for each in (*answer.running, *answer.failed):
        if each.operation != "RunPodSandbox" or each.subject in taken:
            continue
        taken.add(each.subject)
        namespace, _, name = each.subject.partition("/")
        state = f"Failed: {each.error}"
        if not each.duration:
            inner = each.open[-1] if each.open else None
            state = f"Creating ({inner.name} for {span(max(0, now - inner.started_at))})" if inner else "Creating"
        yield each.pod_sandbox_id[:SHORT_ID], name, namespace, state, NONE, age(each.started_at, now), NONE


def operations_table(answer: host.ListOperationsResponse, now: int) -> Table:
    """The output of `explain --failed`: what is under way, and what failed."""
    return table(
        ("REQUEST", "SUBJECT", "BEGAN", "TOOK", "TIMES", "ERROR"),
        (
            (
                each.operation,
                each.subject,
                age(each.started_at, now),
                span(each.duration) if each.duration else "under way",
                str(each.times or 1),
                each.error or NONE,
            )
            for each in (*answer.running, *answer.failed)
        ),
    )


def containers_table(
    containers: Iterable[cri.Container],
    pods: Mapping[str, cri.PodSandbox],
    pod_statuses: Mapping[str, cri.PodSandboxStatus],
    statuses: Mapping[str, cri.ContainerStatus],
    now: int,
) -> Table:
    """The output of `ps`."""
    return table(
        ("CONTAINER", "NAME", "POD", "IMAGE", "STATE", "IP", "CREATED"),
        (
            (
                container.id[:SHORT_ID],
                container.metadata.name,
                pods[container.pod_sandbox_id].metadata.name if container.pod_sandbox_id in pods else NONE,
                image_label(container.image),
                container_state(container.state, statuses.get(container.id)),
                address(pod_statuses.get(container.pod_sandbox_id)),
                age(container.created_at, now),
            )
            for container in containers
        ),
    )


def debts_table(debts: Iterable[host.Debt], now: int) -> Table:
    """The output of `debts`: a line for each plugin that owes."""
    rows = [
        (
            debt.pod_sandbox_id[:SHORT_ID],
            debt.pod + ("" if debt.pod_exists or debt.kept else " (removed)"),
            debt.network,
            owed.plugin,
            ", ".join(debt.ips),
            age(debt.failed_at, now),
            str(owed.attempts),
            "on request" if debt.kept else _coming(debt.next_at, now),
            owed.error,
        )
        for debt in debts
        for owed in debt.plugins or [host.OwedPlugin(plugin="(all)", error=_reason(debt), attempts=debt.attempts)]
    ]
    return table(("POD ID", "POD", "NETWORK", "PLUGIN", "IP", "SINCE", "ATTEMPTS", "NEXT TRY", "ERROR"), rows)


def _reason(debt: host.Debt) -> str:
    return "nothing failed: a replay was to keep it" if debt.kept else debt.error


def audit_table(findings: Iterable[host.AuditFinding], now: int, *, repair: bool) -> Table:
    """The output of `audit`: a line for each finding, with what would be done or, after a repair, what came of it."""
    rows = [
        (
            each.kind + (" (missing)" if each.missing else ""),
            each.name,
            each.owner_id[:SHORT_ID] or NONE,
            each.pod or NONE,
            age(each.since, now) if each.since else NONE,
            each.why,
            _outcome(each) if repair else each.remedy,
        )
        for each in findings
    ]
    return table(("KIND", "NAME", "OWNER", "POD", "SINCE", "WHY", "OUTCOME" if repair else "REPAIR"), rows)


def doctor_text(checks: Collection[host.DoctorCheck]) -> Text:
    """The output of `doctor`: a line for each check, and below what is not well the evidence and the remedy."""
    made = Text()
    wide = max((len(each.name) for each in checks), default=0) + 2
    for each in checks:
        style = {"ok": "green", "error": "bold red", "warning": "yellow"}.get(each.severity, "")
        made.append(f"{printable(each.severity, keep=''):8}", style)
        made.append(f"{printable(each.name, keep=''):{wide}}{printable(each.says, keep='')}\n")
        if each.severity == "ok":
            continue
        for heading, text in (("evidence", each.evidence), ("remedy", each.remedy)):
            if text:
                made.append(f"{'':8}{heading + ':':{wide}}{printable(text, keep='')}\n")
        for command in each.commands:
            made.append(f"{'':8}{'':{wide}}{printable(command, keep='')}\n")
    made.rstrip()
    return made


def _outcome(finding: host.AuditFinding) -> str:
    if finding.repaired:
        return "repaired"
    return "left alone" if finding.unclear else f"not repaired: {finding.error}"


def _coming(moment: int, now: int) -> str:
    """The time until `moment`: "in 40s", "in 3m", "due" when it has come, "now" for 0."""
    seconds = -((now - moment) // 10**9)
    if not moment:
        return "now"
    if seconds <= 0:
        return "due"
    return f"in {seconds}s" if seconds < 120 else f"in {seconds // 60}m"


def images_table(images: Iterable[cri.Image], *, digests: bool = False) -> Table:
    """The output of `images`: a line for each name of each image, with its digest in the registry if `digests`."""
    rows = []
    for image in images:
        short = short_digest(image.id)
        names = [split_tag(tag) for tag in image.repo_tags]
        if not names:
            names = [(digest.partition("@")[0], "<none>") for digest in image.repo_digests[:1]] or [
                ("<none>", "<none>")
            ]
        by_name = dict(digest.split("@", 1) for digest in image.repo_digests if "@" in digest) if digests else {}
        for name, tag in names:
            rows.append((name, tag, *([by_name.get(name, NONE)] if digests else []), short, size(image.size)))
    return table(("IMAGE", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "SIZE"), sorted(rows))


def image_name(image: cri.Image) -> str:
    """The image's first tag, or else its first digest, or else its id."""
    return next(iter((*image.repo_tags, *image.repo_digests, image.id)))


def split_tag(reference: str) -> tuple[str, str]:
    """ "host:5000/path:tag" → ("host:5000/path", "tag"); without a tag the second is empty."""
    name, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        return reference, ""
    return name, tag


def short_digest(identity: str) -> str:
    """The beginning of a digest or an id, for people."""
    return identity.removeprefix("sha256:")[:SHORT_ID]


def image_label(image: cri.ImageSpec) -> str:
    """The image's name as the user gave it; a digest is shortened."""
    reference = image.user_specified_image or image.image
    return short_digest(reference) if reference.startswith("sha256:") else reference


def info_facts(
    status: cri.StatusResponse, config: cri.RuntimeConfigResponse, details: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The output of `info`: conditions, handlers, cgroup driver, then `details`, one line for each value."""
    rows = []
    for condition in status.status.conditions:
        why = " ".join(each for each in (condition.reason, condition.message) if each)
        word = "yes" if condition.status else "no"
        rows.append((condition.type, f"{word}: {why}" if why else word))
    handlers = [each.name or "(default)" for each in status.runtime_handlers]
    rows.append(("Handlers", ", ".join(handlers)))
    rows.append(("CgroupDriver", cri.CgroupDriver.Name(config.linux.cgroup_driver).lower()))
    network = details.get("network")
    if isinstance(network, Mapping) and isinstance(network.get("debts"), list):
        count = len(network["debts"])
        rows.append(("NetworkDebts", f"{count}: `sandboxctl debts` shows them" if count else "0"))
        details = {**details, "network": {key: value for key, value in network.items() if key != "debts"}}
    return rows + [line for name, value in sorted(details.items()) for line in _flat(name, value)]


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    if isinstance(value, str):
        return [(name, value)]
    return [(name, json.dumps(value, ensure_ascii=False))]


def stats_table(stats: Iterable[cri.ContainerStats], pods: Mapping[str, cri.PodSandbox]) -> Table:
    """The output of `stats`; `pods` is by container id. A dash stands for a missing value."""
    return table(
        ("CONTAINER ID", "NAME", "POD", "CPU", "MEMORY", "FREE OF LIMIT", "WRITTEN"),
        (
            (
                item.attributes.id[:SHORT_ID],
                item.attributes.metadata.name,
                pods[item.attributes.id].metadata.name if item.attributes.id in pods else NONE,
                f"{item.cpu.usage_nano_cores.value / 1e7:.1f}%" if item.cpu.HasField("usage_nano_cores") else NONE,
                _bytes(item.memory, "working_set_bytes"),
                _bytes(item.memory, "available_bytes"),
                _bytes(item.writable_layer, "used_bytes"),
            )
            for item in stats
        ),
    )


def _bytes(usage: cri.MemoryUsage | cri.FilesystemUsage, field: str) -> str:
    return size(getattr(usage, field).value) if usage.HasField(field) else NONE  # type: ignore[arg-type]
