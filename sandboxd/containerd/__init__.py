"""containerd's services over its socket, as far as this daemon needs them.

containerd's own messages stay in this package: callers get frozen records, CRI vocabulary and the errors of
`sandboxd.errors`. Each module is one of containerd's nouns; `client` is the connection they share, and `calls` P
says which calls change something; `managed` runs a private containerd; `refusals` reads what it says of a layer that
it cannot unpack. Four know what containerd keeps on disk: `rootfs` reads a snapshot's files, `extract` writes a
layer's, `blob_files` writes a large blob's, `shims` removes the socket of a shim that was killed while starting.
"""
