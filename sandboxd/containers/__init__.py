"""Containers: created in a pod, started, changed, entered, ended and removed.

create            CreateContainer
start             StartContainer
stop              StopContainer
remove            RemoveContainer
ending            how tasks end: killing them, seeing that they ended, recording it
exec              ExecSync and Exec: further processes in a container
admission         how many of these a pod has at once
output            what ExecSync's have written, and how much of it there may be
attach            a client at a container's own streams
stdin             the writing end of a process's stdin
resources         limits that change after the creation
checkpoint        CheckpointContainer, and its archive (checkpoint_archive)
declared_volumes  directories for the volumes that an image declares
image_mounts      images mounted into containers
runtime_reads     files that the OCI runtime opens in a container's root: what they may be
"""
