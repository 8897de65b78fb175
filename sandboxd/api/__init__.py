"""The gRPC edge: translate, never decide.

`edge` is what every RPC passes; `runtime`, `images` and `host` have one short method per RPC; `views` turns
records into messages.
"""
