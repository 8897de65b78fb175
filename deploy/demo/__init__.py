"""`make demo` and `make demo-down`: runs nginx in a pod on this machine, and restores the machine's previous state.

places      the demo's own directories, separate from any real installation
before      the previous state of the machine, recorded first and restored last
up, down    the two commands
story       prints each step with its duration
"""
