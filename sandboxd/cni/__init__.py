"""The runtime's side of CNI: from a configuration directory to a pod's addresses, and back to nothing.

Reading order, one file per step of an attachment's life:

    conf.py      P  bytes of a configuration file → NetworkConfig
    conf_dir.py     the directory → which configuration is in force, and what is wrong with the others
    lookup.py       NetworkConfig → the plugin binaries, found before anything is created
    request.py   P  NetworkConfig + pod → model.Attachment; Attachment → environment and stdin of a plugin
    slots.py        how many plugins run at once, and who waits
    backends.py     which plugins the daemon does the work of itself
    in_process/     how it does that
    identity.py     which networks are the same for every pod
    execution.py    one execution of one plugin (the only process spawn)
    executions.py   how many, for how long, and what is recorded of them
    leftovers.py    plugins that outlived an earlier daemon, ended before a DEL
    stand_ins.py    what takes the place of an IPAM plugin that was uninstalled, in a DEL
    recorded.py  P  executions that were recorded → the same again, for another namespace
    invoker.py      Attachment → the verbs, a chain of executions
    strict_json.py P  strict JSON, for both files and answers
    result.py    P  what a plugin printed → Result
    failures.py  P  how a plugin failed → the error that it means
    diagnosis.py P  a failure's words → its kind, its cause and what to do
    diagnosed.py    the same, noted on the step and the error of a plugin
    convert.py   P  Result → the same in another version of the spec, for the next plugin
    ranges.py    P  which addresses host-local can give
    reservations.py which addresses host-local has given to whom, or to nobody
    gate.py         GC of a network never overlaps its ADDs and DELs

Assumptions:
1. The caller allows one operation at a time per container, several networks of one pod included (CNI spec,
   "Lifecycle & Ordering"). This package itself excludes only GC, per network.
2. Every ADD, failed or not, is followed by a DEL. That is the caller's job; nothing here cleans up by itself.
3. DEL gets exactly what ADD got: both are built from the Attachment and never from the current configuration.

Specification: https://www.cni.dev/docs/spec/ (version 1.1.0).
"""
