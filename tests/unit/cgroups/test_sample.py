"""From the files of a cgroup to figures, both versions of the interface."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.cgroups.sample import (
    Cpu,
    Device,
    Memory,
    Pressure,
    Sample,
    Stall,
    blkio,
    cpu_v1,
    cpu_v2,
    io_stat,
    keyed,
    memory_v1,
    memory_v2,
    number,
    pressure,
    total,
)

NO_LIMIT = "9223372036854771712\n"  # v1: the greatest multiple of a page

V1 = {
    "cpuacct.usage": "5000000000\n",
    "cpuacct.usage_user": "3000000000\n",
    "cpuacct.usage_sys": "2000000000\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 700000\nnr_bursts 0\nburst_time 0\n",
    "memory.usage_in_bytes": "1000\n",
    "memory.limit_in_bytes": "4096\n",
    "memory.stat": (
        "cache 1\nrss 2\ntotal_cache 500\ntotal_rss 300\ntotal_mapped_file 50\ntotal_inactive_file 200\n"
        "total_active_file 100\ntotal_pgfault 7\ntotal_pgmajfault 3\n"
    ),
    "memory.max_usage_in_bytes": "2000\n",
    "memory.failcnt": "9\n",
    "memory.kmem.usage_in_bytes": "40\n",
    "memory.memsw.usage_in_bytes": "1600\n",
    "memory.memsw.limit_in_bytes": "6144\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}
V2 = {
    "cpu.stat": (
        "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\n"
        "nr_periods 10\nnr_throttled 4\nthrottled_usec 700\n"
    ),
    "memory.current": "1000\n",
    "memory.max": "4096\n",
    "memory.stat": (
        "anon 300\nfile 500\nkernel 40\nfile_mapped 50\ninactive_file 200\nactive_file 100\npgfault 7\npgmajfault 3\n"
    ),
    "memory.peak": "2000\n",
    "memory.events": "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n",
    "memory.swap.current": "600\n",
    "memory.swap.max": "2048\n",
}
CPU = Cpu(usage=5 * 10**9, user=3 * 10**9, system=2 * 10**9, periods=10, throttled_periods=4, throttled=700_000)
MEMORY = Memory(
    usage=1000,
    working_set=800,
    limit=4096,
    rss=300,
    cache=500,
    mapped=50,
    kernel=40,
    active_file=100,
    inactive_file=200,
    peak=2000,
    swap=600,
    swap_limit=2048,
    page_faults=7,
    major_page_faults=3,
    failures=9,
    oom_kills=2,
)


def test_both_versions_tell_the_same_of_the_same() -> None:
    assert cpu_v1(V1) == cpu_v2(V2) == CPU
    assert memory_v1(V1) == memory_v2(V2) == MEMORY


def test_what_the_kernel_does_not_measure_is_none_and_not_zero() -> None:
    assert [cpu_v1({}), cpu_v2({}), memory_v1({}), memory_v2({})] == [None] * 4
    v1 = memory_v1({"memory.usage_in_bytes": "5", "memory.limit_in_bytes": NO_LIMIT})
    v2 = memory_v2({"memory.current": "5", "memory.max": "max\n"})
    for found in (v1, v2):
        assert found is not None
        assert (found.limit, found.swap, found.swap_limit, found.peak) == (None, None, None, None)


def test_without_the_finer_files_v1_counts_ticks() -> None:
    found = cpu_v1({"cpuacct.usage": "90", "cpuacct.stat": "user 3\nsystem 2\n"})
    assert found == Cpu(usage=90, user=30_000_000, system=20_000_000)


def test_before_linux_5_18_v2_tells_the_parts_of_the_kernels_memory() -> None:
    found = memory_v2({"memory.current": "5", "memory.stat": "kernel_stack 1\npagetables 2\npercpu 3\nslab 4\n"})
    assert found is not None
    assert found.kernel == 10


def test_the_working_set_is_never_negative() -> None:
    """The files are read one after the other: the cache may have grown between."""
    assert (found := memory_v2({"memory.current": "5", "memory.stat": "inactive_file 9"})) and found.working_set == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [("0\n", 0), ("42\n", 42), ("max\n", None), (NO_LIMIT, None), ("", None), ("-1\n", None), ("many", None)],
)
def test_a_number_or_no_limit(text: str, value: int | None) -> None:
    assert number(text) == value


def test_pressure_is_told_in_nanoseconds() -> None:
    text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=1000\n"
    assert pressure(text) == Pressure(
        some=Stall(total=1_234_000, avg10=1.5, avg60=0.25), full=Stall(total=1_000_000, avg10=0.5)
    )


def test_before_linux_5_13_the_cpu_has_some_pressure_only() -> None:
    assert pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n") == Pressure(
        some=Stall(total=1000), full=Stall(total=0)
    )
    assert pressure("") is None


def test_devices_of_both_versions() -> None:
    v2 = "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \n253:1 rbytes=9\n"
    sizes = "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\nTotal 3\n253:1 Read 9\n"
    counts = "8:0 Read 3\n8:0 Write 4\nTotal 7\n"
    expected = (
        Device(major=8, minor=0, read_bytes=1, write_bytes=2, reads=3, writes=4),
        Device(major=253, minor=1, read_bytes=9),
    )
    assert io_stat(v2) == expected
    assert blkio(sizes, counts) == expected


def test_several_cgroups_add_up_but_for_their_limits() -> None:
    one = Sample(at=5, cpu=CPU, memory=MEMORY, devices=(Device(major=8, minor=0, reads=1),), tasks=2, tasks_limit=9)
    two = Sample(at=7, cpu=CPU, devices=(Device(major=8, minor=0, reads=4), Device(major=8, minor=1)), tasks=None)
    found = total([one, two])
    assert found is not None
    assert found.at == 7
    assert found.cpu == Cpu(
        usage=10**10, user=6 * 10**9, system=4 * 10**9, periods=20, throttled_periods=8, throttled=1_400_000
    )
    assert found.memory is not None
    assert (found.memory.usage, found.memory.limit, found.memory.swap) == (1000, None, 600)
    assert found.devices == (Device(major=8, minor=0, reads=5), Device(major=8, minor=1))
    assert (found.tasks, found.tasks_limit) == (2, None)
    assert total([]) is None


@given(st.text())
def test_no_file_can_make_a_parser_fail(text: str) -> None:
    files = dict.fromkeys({*V1, *V2, "cpuacct.stat"}, text)
    keyed(text)
    number(text)
    pressure(text)
    io_stat(text)
    blkio(text, text)
    for parse in (cpu_v1, cpu_v2, memory_v1, memory_v2):
        parse(files)
