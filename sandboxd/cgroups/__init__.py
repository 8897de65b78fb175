"""Control groups: what their files say (sample P), reading (kernel) and removing them.

Where they are is in `sandboxd.places`.

The OCI runtime makes them; `removal` takes away what it leaves.
"""
