"""What `bridge` with `host-local` and `portmap` do, done by the daemon itself: no process but iptables.

The same input gives the same output and the same changes to kernel and files, so that plugins, other runtimes and
people who run plugins by hand share the network. Reading order:

    backend.py        one execution: what `execution.run` is for a process
    supported.py  P   which configurations this is for
    genuine.py        which binaries are the reference plugins
    dialects.py   P   in what the versions of the plugins differ
    bridge.py         interfaces, addresses, routes, sysctls
    host_local.py     the files of addresses, and their lock
    ranges.py     P   which address is next
    portmap.py        host ports
    iptables.py       rules, made and removed
    rules.py      P   the lines of those rules
    netlink.py        messages to the kernel
    words.py      P   what plugins say when they fail
"""
