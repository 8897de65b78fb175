"""CRI configs and images in, OCI documents out: what containerd runs, and from what. All pure, except that
`archive` and `archive_files` read files.

    validate    refuses CRI configs that can never work or that this version does not offer
    dubious     what is accepted though it may not be meant, for the log
    users       who a container runs as: USER, run_as_*, /etc/passwd and /etc/group of the image
    stop_signal                    signal names to numbers
    linux       the Linux sections that every spec shares, and HostFacts: the facts about the machine
    seccomp     the system call filter: RuntimeDefault as data, Localhost profiles checked
    lsm         AppArmor profiles and SELinux labels
    userns      a pod's user namespace
    cdi         the edits that a vendor's file lists for a device
    sandbox     PodSandboxConfig   -> runtime spec of the pause container
    pinned      the same for a pod without one: what containerd keeps of it, and where its namespaces are
    container   ContainerConfig    -> runtime spec of a workload
    files       the texts of a pod's /etc/hosts, /etc/hostname and /etc/resolv.conf
    image, layers                  manifests and configs; scanning a layer and computing its digests
    platforms, selection           which manifest is for a machine, and what leads to it
    tar, links, compression        the parts of a layer, read within bounds
    recording                      small layers held in memory
    archive, archive_files, layout image archives: reading untrusted ones, writing our own

Rules: 1. `validate` runs before any effect; the builders trust what it has checked. 2. A builder reads nothing
but its arguments: facts about the machine arrive as `linux.HostFacts`. 3. A spec is a plain dict, ready for
`json.dumps`; a section that the request does not ask for is omitted, not left empty.
"""
