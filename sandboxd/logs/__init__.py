"""Container output: from the FIFOs that the shim keeps open to log files in the CRI format.

In the daemon, `client` is what everybody else sees; `process` starts and ends the logger, `control` talks to it,
`fifos` makes the FIFOs and keeps them alive, `reader` reads log files back.

The logger is a process of its own (`python -m sandboxd.logs`): `logger` is its loop, `pump` one container's output,
`writer` its log file, `connection` and `listeners` its clients. It imports nothing of the daemon's side.

Both sides know `format`, the log file's entries, and `wire`, what they say to each other; these two are pure.
`regular` is how either side opens a file in a directory that others may write to.
"""
