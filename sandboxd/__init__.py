"""sandboxd: a CRI-compatible pod sandbox daemon over containerd and CNI that shows what it does.

The map, top to bottom; imports go down only and siblings on a line are blind to each other (.importlinter and
tests/unit/architecture keep it so). P marks pure modules: no IO, no clock, no environment, no async.

    __main__                 `sandboxd serve | config | check`
    daemon                   the composition root: build each object once, recover, serve, notify, drain
    api/                     the gRPC edge: translate, never decide
        edge                 every RPC passes here: gate, errors to codes, cancellation policy
        runtime images host  one short method per RPC; exec, events, lists, resources, stats are parts of runtime
        views withheld  P    records to CRI messages; what of a request no log may show
    streaming/               exec, attach, port-forward: protocol cores P, the server for them, its sessions
    insight/                 doctor: what a machine lacks; metrics: what the daemon counts
    usage/                   what pods and containers use
    pods/                    run, connected, looked after, taken down
    containers/              created, started, changed, entered, ended, removed
    operations               the one shape of a mutating request
    machine/                 what this machine is and can: facts, runtime handlers, user namespaces
    node                     the resources that an operation needs, in one bundle
    images/                  brought in, kept, made into root file systems; see its head
    netns  cgroups/  cni/  containerd/  logs/  ledger  announce
        netns                named network namespaces, and the user namespaces that own them
        cgroups/             what their files say P, reading and removing them
        cni/                 conf P, request P, result P, invoker: the plugins
        containerd/          containerd's services over its socket; managed: a private containerd
        logs/                format P, client; and the logger, a process of its own that outlives the daemon
        ledger               SQLite: records, unique names, attachments, timelines
        announce             CRI's events, from the ledger's changes
    oci/                P    CRI config to OCI runtime spec; image formats
    registry/                references P, hosts.toml P, credentials; client: fetching from registries
    places              P    every path, key, cgroup and label that an id gives
    model               P    records and the states they compute to
    steps                    the one instrument
    supervised               processes that outlive the daemon: started, found again, ended
    foreign_json        P    JSON of images and registries, read within bounds
    mounts  mountinfo  P     the mounts of this process; what a list of them says, and where a path leads
    remembered               answers that hold until a program, or the machine, changes
    jobs  config  private  syscalls  trees
                             owned background work; every default; who may reach our files; the only ctypes; walking
                             and removing what images and containers made
    complaints               what libraries, asyncio and uncaught errors would print, in our log and words
    disclosure               what may be told of an error: tracebacks without values, words without secrets
    errors              P    the error tree
    cli/                     sandboxctl: knows the wire contracts and itself only
    pb/                      generated from proto/, never edited

To read it for the first time: model, then pods/run with pods/teardown, then cni/invoker, then daemon.
"""

__version__ = "0.1.0"
