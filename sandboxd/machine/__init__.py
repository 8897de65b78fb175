"""This machine, as operations see it.

facts     what OCI specs depend on: capabilities, cgroups, devices, mounts, profiles
handlers  the runtime handlers: which there are, what each can do here
pins      a pod's pinned namespaces, which others can reach
pod_files hosts, hostname, resolv.conf and shared memory of a pod
userns    a pod's user namespace, and files seen through its ids
rules     the iptables rules that masquerade a pod's traffic
rule_lists   what iptables-save and nft print, as chains and rules (pure)
network_look a look at the network of the host and of one pod
programs  asking a program of the machine a question
room      whether there is room for another pod, and some in reserve to remove pods
"""
