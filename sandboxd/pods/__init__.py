"""Pods: run, connected, looked after, and taken down.

run        RunPodSandbox: record, netns, network and pause at once, start
pause      the pause container that holds a pod's namespaces
pinned     pods without one: their namespaces are pinned by mounts
pool       pods that are prepared ahead, and handed out in one short step
eligible   which requests they can serve (pure)
placing    the cgroup that a client names, for a pod that was prepared in another one
refill     the pool is filled, and rid of what is out of date
teardown   the one way back: failed runs, Stop, Remove and recovery are this code
network    a pod's attachment: ADD, DEL, and what of a DEL failed
masquerading  rules for masquerading that a DEL could not find
recording  what each plugin changes on the machine, for pods that ask for it
boots      pods that ended because the machine was restarted, and the addresses that they had
adopt      records that the ledger has lost, put back from what containerd keeps
debts      DELs that failed: listed, tried again, forgiven
replay     a recorded execution of a plugin, run again in a scratch namespace
reclaim    what is left of a pod that the ledger does not know
holders    who holds the addresses of our networks; what nobody holds is released
ending     how pods end: with their pause container, or without their namespaces
resources  limits that change after the creation
files      the files of an earlier version's pods, cgroups
publish    host ports and other promises of the network, held against what it can do
ports      connections to a pod's localhost
cidr       the pod CIDR into a network configuration
follow     containerd's events, each a reason to look
reconcile  records and observations to repairs (pure)
recover    gather, reconcile, apply: at start, on reconnect, periodically
"""
