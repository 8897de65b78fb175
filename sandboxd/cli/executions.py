"""The executions of plugins in Explain's answer, each with a number, and the one that a person means. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from sandboxd.cli import plugin_results, render
from sandboxd.pb.host.v1 import host_pb2 as host

_COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION")


class NotOne(LookupError):
    """No execution is meant, or several are; the message says which there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """One execution of a plugin."""

    number: int  # from 1, in the order in which they began
    step: host.Step

    @property
    def command(self) -> str:
        """ADD, DEL and so on."""
        return self.step.plugin.command

    @property
    def plugin(self) -> str:
        """The plugin's type."""
        return self.step.detail.get("plugin") or self.step.plugin.binary.rpartition("/")[2]

    @property
    def failed(self) -> bool:
        """Whether the plugin failed, or its answer was refused."""
        return bool(self.step.error)


def listed(answer: host.ExplainResponse) -> list[Execution]:
    """All of them: of the pod's steps, of what is under way and of what failed; each once."""
    every = [*answer.steps, *(step for operation in answer.operations for step in operation.steps)]
    found = {(step.started_at, step.name): step for step in every if step.HasField("plugin")}
    return [Execution(number=number, step=found[key]) for number, key in enumerate(sorted(found), 1)]


def meant(executions: Sequence[Execution], words: Sequence[str]) -> Execution:
    """The one with this number, command, plugin or step's name; with no words, the last one that failed.

    VERSION has to be named: every plugin is asked for it. Raises NotOne.
    """
    text = " ".join(words).split()
    if not text:
        failed = [each for each in executions if each.failed]
        if failed:
            return failed[-1]
        raise NotOne(_told("none of its plugins failed; say which one to run again", executions))
    matching = [each for each in executions if _is_meant(each, text)]
    if len(matching) == 1:
        return matching[0]
    shown = " ".join(text)
    if matching:
        raise NotOne(_told(f"{shown!r} is more than one execution; choose one by its number", matching))
    raise NotOne(_told(f"there is no execution {shown!r}", executions))


def _is_meant(each: Execution, words: Sequence[str]) -> bool:
    if len(words) == 1 and words[0].isdecimal():
        return each.number == int(words[0])
    if each.command == "VERSION" and not {"VERSION", "CNI.VERSION"} & {word.upper() for word in words}:
        return False
    return all(_fits(each, word) for word in words)


def _fits(each: Execution, word: str) -> bool:
    if word.upper() in _COMMANDS:
        return word.upper() == each.command
    return word in (each.plugin, each.step.name)


def _told(problem: str, executions: Iterable[Execution]) -> str:
    return "\n".join([f"{problem}:", *(f"  {each.number:>3}  {_line(each)}" for each in executions)])


def _line(each: Execution) -> str:
    return plugin_results.line(each.step.plugin)


def table(executions: Iterable[Execution], now: int) -> Table:
    """The output of `replay --list`."""
    return render.table(
        ("NUMBER", "REQUEST", "WHEN", "EXECUTION", "ERROR"),
        (
            (
                str(each.number),
                each.step.operation,
                render.age(each.step.started_at, now),
                _line(each),
                each.step.error,
            )
            for each in executions
        ),
    )
