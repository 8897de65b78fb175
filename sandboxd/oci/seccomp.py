"""System call filters: the RuntimeDefault profile as data, and the check of Localhost profiles.

The default profile refuses calls that reach beyond the container: loading kernel code, mounting, joining or
creating namespaces, the kernel's keyrings and clocks, raw hardware. Calls that need a capability are allowed to
containers that have it. Any other call is refused with EPERM (seccomp(2); OCI runtime spec, "Seccomp").
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import Any

from sandboxd import foreign_json
from sandboxd.errors import InvalidRequest, Unsupported
from sandboxd.oci.linux import HostFacts, Json
from sandboxd.pb.cri.v1 import api_pb2 as cri

SecurityContext = cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext

_EPERM, _ENOSYS = 1, 38  # errno.h; the same on every architecture below

_FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
    fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents
    getdents64 ioctl lchown lchown32 link linkat lseek _llseek lstat lstat64 mkdir mkdirat mknod mknodat
    name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64
    statfs statfs64 statmount listmount statx symlink symlinkat sync sync_file_range syncfs tee truncate truncate64
    umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_EXTENDED_ATTRIBUTES = """
    fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
    lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""
_EVENTS = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect poll ppoll ppoll_time64 pselect6
    pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64
"""
_MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease
    remap_file_pages
"""
_PROCESSES = """
    capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait futex_waitv
    futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups
    getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32 getrlimit
    getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set landlock_add_rule landlock_create_ruleset
    landlock_restrict_self pidfd_open pidfd_send_signal prctl prlimit64 process_vm_readv process_vm_writev ptrace
    restart_syscall rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
    setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 ugetrlimit
    vfork wait4 waitid waitpid
"""
_SIGNALS = """
    kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn tgkill tkill
"""
_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
_IPC = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
# adjtimex and clock_adjtime also read the clock's state; the kernel itself requires CAP_SYS_TIME for changing it.
_TIME_AND_MACHINE = """
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer getrandom gettimeofday nanosleep setitimer sysinfo time
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 times uname
"""

_ALLOWED = sorted(
    {
        name
        for group in (
            _FILES,
            _EXTENDED_ATTRIBUTES,
            _EVENTS,
            _MEMORY,
            _PROCESSES,
            _SIGNALS,
            _SOCKETS,
            _IPC,
            _TIME_AND_MACHINE,
        )
        for name in group.split()
    }
)

# uname -m -> (seccomp architectures, its own system calls)
_MACHINES: dict[str, tuple[tuple[str, ...], str]] = {
    "x86_64": (("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"), "arch_prctl modify_ldt"),
    "aarch64": (
        ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    "ppc64le": (("SCMP_ARCH_PPC64LE",), "swapcontext sync_file_range2"),
    "riscv64": (("SCMP_ARCH_RISCV64",), "riscv_flush_icache riscv_hwprobe"),
    "s390x": (("SCMP_ARCH_S390X", "SCMP_ARCH_S390"), "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"),
}

_BY_CAPABILITY: dict[str, str] = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_set_self_attr mount
        mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns
        syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

# sched.h: the flags that create a namespace. CLONE_NEWTIME overlaps the exit signal and exists only in clone3.
_NEW_NAMESPACES = (
    0x00020000  # mount
    | 0x02000000  # cgroup
    | 0x04000000  # uts
    | 0x08000000  # ipc
    | 0x10000000  # user
    | 0x20000000  # pid
    | 0x40000000  # network
)

# sys/personality.h: PER_LINUX and PER_LINUX32, each also with UNAME26, and the query for the current one.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)

_AF_ALG, _AF_VSOCK = 38, 40  # the kernel's crypto interface; the hypervisor, bypassing every namespace


def requested(context: SecurityContext) -> cri.SecurityProfile | None:
    """The profile that a security context requests; None when it requests none.

    `seccomp_profile_path`, the older field, counts only when `seccomp` is unset. Raises InvalidRequest when it
    does not have one of its documented forms.
    """
    if context.HasField("seccomp"):
        return context.seccomp
    match context.seccomp_profile_path.partition("/"):
        case ("", "", ""):
            return None
        case ("unconfined", "", ""):
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.Unconfined)
        case ("runtime" | "docker", "/", "default"):
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
        case ("localhost", "/", path) if path:
            return cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=path)
    raise InvalidRequest(
        f"config.linux.security_context.seccomp_profile_path: {context.seccomp_profile_path!r} is not"
        " unconfined, runtime/default or localhost/PATH"
    )


def localhost_file(context: SecurityContext, directory: str) -> str:
    """The file of the Localhost profile that applies to the context, "" for none.

    A relative name is looked up in `directory`; some clients keep the older field's "localhost/" before it. Raises
    InvalidRequest for one that leads out of the directory.
    """
    profile = requested(context)
    if context.privileged or profile is None or profile.profile_type != cri.SecurityProfile.Localhost:
        return ""
    name = profile.localhost_ref.removeprefix("localhost/")
    if name.startswith("/"):
        return name
    inside = posixpath.normpath(name)
    if inside in (".", "..") or inside.startswith("../"):
        raise InvalidRequest(
            f"config.linux.security_context.seccomp.localhost_ref: {name!r} is not a file in {directory}"
        )
    return posixpath.join(directory, inside)


_ACTION = re.compile(r"SCMP_ACT_[A-Z_]+\Z")
_OPERATORS = frozenset(f"SCMP_CMP_{op}" for op in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_MAX_ERRNO = 4095  # the kernel's MAX_ERRNO: larger values would be taken for addresses
_PROFILE = frozenset(
    {"defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath", "listenerMetadata", "syscalls"}
)
_RULE = frozenset({"names", "action", "errnoRet", "args"})
_ARG = frozenset({"index", "value", "valueTwo", "op"})
_COMMENTS = frozenset({"comment"})  # in the profiles of other tools; without effect


def parse_profile(data: bytes, source: str) -> Json:
    """Parse a Localhost profile: `linux.seccomp` of the OCI runtime spec as JSON.

    Raises InvalidRequest that names the file and the member. Unknown members are refused, not skipped: a rule that
    in Docker's format applies only to certain capabilities or kernels would apply to all.
    """
    profile = foreign_json.parse(data, f"seccomp profile {source}", repeated=True)
    checked = _members(profile, _PROFILE, f"seccomp profile {source}")
    where = f"seccomp profile {source}: "
    _action(checked.get("defaultAction"), f"{where}defaultAction")
    _errno(checked.get("defaultErrnoRet"), f"{where}defaultErrnoRet")
    _texts(checked.get("architectures", []), f"{where}architectures", "SCMP_ARCH_")
    _texts(checked.get("flags", []), f"{where}flags", "SECCOMP_FILTER_FLAG_")
    for name in ("listenerPath", "listenerMetadata"):
        if not isinstance(checked.get(name, ""), str):
            raise InvalidRequest(f"{where}{name}: must be a string")
    rules = checked.get("syscalls", [])
    if not isinstance(rules, list):
        raise InvalidRequest(f"{where}syscalls: must be a list")
    checked["syscalls"] = [_rule(rule, f"{where}syscalls[{i}]") for i, rule in enumerate(rules)]
    actions = {checked["defaultAction"], *(rule["action"] for rule in checked["syscalls"])}
    if "SCMP_ACT_NOTIFY" in actions and not checked.get("listenerPath"):
        raise InvalidRequest(f"{where}listenerPath: is not set, and SCMP_ACT_NOTIFY needs it")
    return checked


def _rule(value: Any, where: str) -> Json:
    rule = _members(value, _RULE, where)
    _texts(rule.get("names"), f"{where}.names", "")
    if not rule["names"]:
        raise InvalidRequest(f"{where}.names: must name a system call")
    _action(rule.get("action"), f"{where}.action")
    _errno(rule.get("errnoRet"), f"{where}.errnoRet")
    args = rule.get("args", [])
    if not isinstance(args, list):
        raise InvalidRequest(f"{where}.args: must be a list")
    for i, arg in enumerate(args):
        checked = _members(arg, _ARG, f"{where}.args[{i}]")
        if checked.get("op") not in _OPERATORS:
            raise InvalidRequest(f"{where}.args[{i}].op: {checked.get('op')!r} is not a comparison")
        for name, most in (("index", 5), ("value", 2**64 - 1), ("valueTwo", 2**64 - 1)):
            value = checked.get(name, 0)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
                raise InvalidRequest(f"{where}.args[{i}].{name}: {value!r} is not between 0 and {most}")
    return rule


def _members(value: Any, known: Collection[str], where: str) -> Json:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: must be an object")
    if unknown := [key for key in value if key not in known and key not in _COMMENTS]:
        raise InvalidRequest(
            f"{where}: {unknown[0]!r} is not in the OCI runtime spec's seccomp format, which has"
            f" {', '.join(sorted(known))}"
        )
    return {key: item for key, item in value.items() if key not in _COMMENTS and item is not None}


def _action(value: Any, where: str) -> None:
    if not isinstance(value, str) or not _ACTION.match(value):
        raise InvalidRequest(f"{where}: {value!r} is not an action like SCMP_ACT_ERRNO")


def _errno(value: Any, where: str) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_ERRNO):
        raise InvalidRequest(f"{where}: {value!r} is not between 0 and {_MAX_ERRNO}")


def _texts(value: Any, where: str, prefix: str) -> None:
    if not isinstance(value, list) or not all(isinstance(v, str) and v.startswith(prefix) and v for v in value):
        raise InvalidRequest(f"{where}: must be a list of {f'{prefix}... names' if prefix else 'names'}")


def for_context(context: SecurityContext, capabilities: Collection[str], host: HostFacts) -> Json | None:
    """`linux.seccomp` for a container with `capabilities`; None means unconfined.

    Without a requested profile a container is unconfined; a privileged one always is. Raises Unsupported when a
    filter is requested and this kernel has no seccomp filters.
    """
    profile = requested(context)
    if context.privileged or profile is None or profile.profile_type == cri.SecurityProfile.Unconfined:
        return None
    if not host.seccomp:
        raise Unsupported("config.linux.security_context.seccomp: this kernel has no seccomp filters")
    if profile.profile_type == cri.SecurityProfile.Localhost:
        assert host.seccomp_profile is not None, "the profile is read when the facts are gathered"
        return host.seccomp_profile
    return default_profile(capabilities, host.machine)


def default_profile(capabilities: Collection[str], machine: str) -> Json:
    """The RuntimeDefault filter for a process with these capabilities; `machine` is as in uname -m.

    An unknown machine gets a filter for its native system calls only.
    """
    architectures, own_calls = _MACHINES.get(machine, ((), ""))
    extra = {name for held in capabilities for name in _BY_CAPABILITY.get(held, "").split()}
    rules = [
        _allow(*_ALLOWED, *own_calls.split()),
        # runc combines conditions on one argument within a rule by OR, so each range is a rule of its own.
        _allow("socket", arg=(0, "SCMP_CMP_LT", _AF_ALG)),
        _allow("socket", arg=(0, "SCMP_CMP_EQ", _AF_ALG + 1)),
        _allow("socket", arg=(0, "SCMP_CMP_GT", _AF_VSOCK)),
        *(_allow("personality", arg=(0, "SCMP_CMP_EQ", value)) for value in _PERSONALITIES),
    ]
    if "clone" not in extra:
        flags = 1 if machine == "s390x" else 0  # clone(2): on s390x the flags are the second argument
        rules.append(_allow("clone", arg=(flags, "SCMP_CMP_MASKED_EQ", _NEW_NAMESPACES)))
        # A filter cannot look into clone3's struct. ENOSYS makes libraries fall back to clone; EPERM does not.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    if extra:
        rules.append(_allow(*sorted(extra)))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        **({"architectures": list(architectures)} if architectures else {}),
        "syscalls": rules,
    }


def _allow(*names: str, arg: tuple[int, str, int] | None = None) -> Json:
    rule: Json = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if arg:
        index, op, value = arg
        # For MASKED_EQ `value` is the mask, and valueTwo is the value that the masked argument must have.
        rule["args"] = [{"index": index, "value": value, "valueTwo": 0, "op": op}]
    return rule
