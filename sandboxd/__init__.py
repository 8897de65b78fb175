"""sandboxd: a CRI-compatible pod sandbox daemon over containerd and CNI that shows what it does.

The map, top to bottom, one layer a line. A module imports from the layers below its own only; modules on one line
do not import each other (.importlinter and tests/unit/architecture keep both, and this map, true). P marks pure
modules: no IO, no clock, no environment, no async.

    __main__  cli/
        __main__             `sandboxd serve | config | check`
        cli/                 sandboxctl: knows the wire contracts and itself only
    daemon                   the composition root: build each object once, recover, serve, notify, drain
    api/                     the gRPC edge: translate, never decide
        edge                 every RPC passes here: gate, errors to codes, cancellation policy
        services             each gRPC service, composed from the rooms that have its RPCs
        runtime  pods        CRI's RuntimeService, one short method per RPC: about the runtime itself, pods,
        containers  inside   containers, what is run or reached inside of them,
        usage  events        what they use, what happens to them
        images               CRI's ImageService
        host  transfer       our own Host service: reading, images in and out,
        debts  audit         networks that pods still owe a DEL, what is nobody's,
        networks  replay     what there is of a pod's network now; an execution of a plugin, run again
        doctor               whether a pod's network, or the machine, is well
        lookup               which records a request is about: ids, filters
        views           P    records to messages
        entries              the entries of lists, each made once for its record
        usage_views     P    the same for records of use
        lists           P    lists in parts that fit a message
        withheld        P    what of a request no log may show
    streaming/  insight/
        streaming/           exec, attach, port-forward: protocol cores P, the server for them, its sessions
        insight/             explain P: which operations a name means; metrics; audit: what is nobody's, or missing;
                             doctor: what a machine lacks; diagnose P: what is wrong with a pod's network
    usage/                   what pods and containers use
    pods/                    run, connected, looked after, taken down
    containers/              created, started, changed, entered, ended, removed
    operations               the one shape of a mutating request
    machine/                 what this machine is and can do: facts, runtime handlers, user namespaces
    node                     the resources that an operation needs, in one bundle
    images/                  brought in, kept, made into root file systems, given out
    netns  rtnetlink  cgroups/  cni/  containerd/  logs/  ledger  announce
        netns                named network namespaces, the user namespaces that own them, and a pod's others
        rtnetlink            links, addresses, routes and so on, as the kernel lists them
        cgroups/             what their files say P, reading and removing them, moving a process
        cni/                 conf P, request P, result P, invoker: the plugins
        containerd/          containerd's services over its socket; managed: a private containerd
        logs/                format P, client; and the logger, a process of its own that outlives the daemon
        ledger               SQLite: records, unique names, attachments
        announce             CRI's events, from the ledger's changes
    oci/                     CRI config to OCI runtime spec P; image formats P, image archives
    registry/                references P, hosts.toml P, credentials; client: fetching from registries
    timelines                the steps of pods, and the operations that failed, in the ledger's database
    places  record_format  network_state
        places          P    every path, key, cgroup and label that an id gives
        record_format   P    records as text, for the ledger and for containerd to keep
        network_state   P    what a network consists of, what differs between two moments, and whose it is
    model               P    records and the states they compute to
    steps                    the one instrument
    commits                  transactions on the ledger's file, and what waits while it cannot be written
    database  mounts  supervised  reserve
        database             the ledger's SQLite file: opened, put aside, watched
        mounts               the mounts that this process sees, and taking them away
        supervised           processes that outlive the daemon: started, found again, ended
        reserve              room on the disk that is set aside, so that pods can be removed when there is none
    jobs  config  environment  private  remembered  syscalls  complaints  foreign_json  foreign_yaml  trees  mountinfo
        jobs                 background work with an owner
        config               the configuration, and every default
        environment          the variables that the daemon was started with, and those that it hands on
        private              who may reach our files
        remembered           answers that hold until a program, or the machine, changes
        syscalls             the system calls that Python lacks: the only ctypes
        complaints           what libraries, asyncio and uncaught errors would print, in our log and words
        foreign_json    P    JSON of images and registries, read within bounds
        foreign_yaml    P    YAML that others wrote, likewise
        trees                walking and removing what images and containers made
        mountinfo       P    what a list of mounts says, and which of them a path leads to
    disclosure  links  retries  spans  turns  vocabulary
        disclosure           what may be disclosed of an error: tracebacks without values, words without secrets
        links           P    interfaces and routes: what netlink tells of a network namespace
        retries              when what failed is tried again, and how much at once
        spans                where in a distributed trace this code is
        turns                how much goes on at once, and who is next
        vocabulary      P    the names of steps
    errors              P    the error tree
    pb/                      generated from proto/, never edited

To read it for the first time: model, then pods/run with pods/teardown, then cni/invoker, then daemon.
"""

__version__ = "0.1.0"
