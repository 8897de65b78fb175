"""What ExecSync's have written: bounded in one answer, and over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sandboxd.containers.output import FREE_BYTES, MAX_OUTPUT_BYTES, Output
from sandboxd.turns import Budget
from tests.fakes.bundle import Bundle


async def pieces(count: int, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_output_of_all_is_bounded_and_everybody_gets_all_of_his(fakes: Bundle) -> None:
    object.__setattr__(fakes.node.machine.load, "output", Budget(3 * MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    most = 0

    async def one() -> int:
        nonlocal most
        output = Output(fakes.node)
        outputs.append(output)
        await output.pour(pieces(20), output.stdout)
        most = max(most, sum(len(each.stdout) for each in outputs))
        stdout, _ = output.take()
        output.collected()
        output.sent()
        return len(stdout)

    outputs: list[Output] = []
    async with asyncio.timeout(60):
        assert await asyncio.gather(*(one() for _ in range(12))) == [MAX_OUTPUT_BYTES] * 12
    assert most <= 3 * MAX_OUTPUT_BYTES + 12 * FREE_BYTES
    assert fakes.node.machine.load.output.free == 2 * MAX_OUTPUT_BYTES


async def test_a_few_lines_need_no_room(fakes: Bundle) -> None:
    object.__setattr__(fakes.node.machine.load, "output", Budget(0, 0))
    output = Output(fakes.node)
    async with asyncio.timeout(30):
        await output.pour(pieces(1, FREE_BYTES), output.stderr)
    assert len(output.take()[1]) == FREE_BYTES


async def test_output_comes_before_errors_in_an_answer(fakes: Bundle) -> None:
    output = Output(fakes.node)
    await output.pour(pieces(17), output.stderr)
    await output.pour(pieces(10), output.stdout)
    stdout, stderr = output.take()
    assert (len(stdout), len(stderr)) == (10 << 20, MAX_OUTPUT_BYTES - (10 << 20))


async def test_room_is_kept_until_the_client_has_the_answer(fakes: Bundle) -> None:
    free = fakes.node.machine.load.output.free
    output = Output(fakes.node)
    await output.pour(pieces(2), output.stdout)
    output.collected()
    assert fakes.node.machine.load.output.free < free
    output.sent()
    assert fakes.node.machine.load.output.free == free
