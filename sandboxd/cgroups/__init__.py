"""Control groups: the content of their files (sample P), reading them (kernel), moving a process to another
(moving) and removing them (removal).

The OCI runtime creates them; `removal` removes what it leaves behind. Their paths are in `places`.
"""
