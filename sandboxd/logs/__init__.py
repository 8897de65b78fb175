"""Container output: from the FIFOs that the shim keeps open to log files in the CRI format.

In the daemon, `client` is what other modules use; `process` starts and ends the logger, `control` talks to it,
`fifos` creates the FIFOs and keeps them alive, `reader` reads log files back.

The logger is a process of its own (`python -m sandboxd.logs`): `logger` is its loop, `pump` one container's output,
`writer` its log file, `connection` and `listeners` its clients. It imports nothing of the daemon's side.

Both sides use `format`, the log file's entries, and `wire`, the protocol between them; these two are pure. `regular`
is how either side opens a file in a directory that others may write to.
"""
