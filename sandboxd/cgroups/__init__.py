"""Control groups: where a pod's are (places P), what their files say (sample P), reading (kernel) and removing them.

The OCI runtime makes them; `removal` takes away what it leaves.
"""
