"""What the daemon does with pods, one verb a file; the resources it does it with are bundled in `host`.

run_sandbox   RunPodSandbox: record, netns, network and pause at once, start
containers    CreateContainer, StartContainer, RemoveContainer
processes     how containers end: stopping them, seeing that they ended, recording it
exec          ExecSync and Exec: further processes in a container
attach        a client at a container's own streams
stdin         the writing end of a process's stdin
port_forward  connections to a pod's localhost
teardown      the one way back: failed runs, Stop, Remove and recovery are this code
network       a sandbox's attachment: ADD, DEL, and the debts of DELs that failed
pod_files     hosts, hostname, resolv.conf, shared memory
events        containerd's events wake us; truth is looked up
reconcile     records and observations to repairs (pure)
recover       gather, reconcile, apply; at start, on reconnect, periodically
pod_cidr      the pod CIDR into a network configuration
resources     limits that change after the creation
checkpoint    CheckpointContainer, and its archive (checkpoint_archive)
image_volumes images mounted into containers
volumes       directories for the volumes that an image declares
"""
