"""What containerd is to run and from what: CRI configs and images in, OCI documents out. All pure.

    validate    CRI configs that can never work, or that this version does not offer, are refused here
    users       who a container runs as: USER, run_as_*, /etc/passwd and /etc/group of the image
    stop_signal                    names of signals, to their numbers
    linux       the Linux sections that every spec shares, and HostFacts: what the machine is like
    seccomp     the system call filter: RuntimeDefault as data, Localhost profiles checked
    lsm         AppArmor profiles and SELinux labels
    userns      a pod's user namespace
    cdi         what a vendor's file says that a device needs
    sandbox     PodSandboxConfig   -> runtime spec of the pause container
    container   ContainerConfig    -> runtime spec of a workload
    files       the texts of a pod's /etc/hosts, /etc/hostname and /etc/resolv.conf
    image, layers                  manifests and configs, and what identifies a layer
    tar, links, compression        what a layer is made of, read within bounds
    recording                      small layers held in memory
    archive, archive_files, layout image archives: reading strangers', writing our own

Rules: 1. `validate` runs before any effect; the builders trust what it has checked. 2. A builder reads nothing
but its arguments: facts about the machine arrive as `linux.HostFacts`. 3. A spec is a plain dict, ready for
`json.dumps`; a section that the request does not ask for is absent rather than empty.
"""
