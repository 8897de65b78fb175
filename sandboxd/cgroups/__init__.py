"""Control groups: where a pod's are (places P), what their files say (sample P), and reading them (kernel).

Nothing here changes a cgroup: the OCI runtime does, and `lifecycle.pod_files` removes what it leaves.
"""
