"""Container output: from the FIFOs that the shim keeps open to log files in the CRI format.

`format` is the format itself (pure), `pump` reads FIFOs and writes files, `reader` reads the files back,
`client` is what the rest of the daemon sees of it all.
"""
