"""Exec, attach and port-forward for kubectl, crictl and every other CRI client.

An RPC only hands out a URL with a single-use token (`server.url_for`); the client then speaks to the server here.
Three transports carry the same things, named streams of bytes, and below `connections` they look the same:

    link            one TCP connection: reading, back-pressure, idleness, farewell
    ├── spdy                 P    SPDY/3.1; spdy_headers P is its compressed header block
    ├── websocket Channels        one WebSocket, a channel number before each message; channels P is the framing
    └── websocket Tunnel          SPDY/3.1 inside WebSocket messages
    stdio           exec and attach over a link; remotecommand P is what their protocols agree on
    forwarding      port-forward over a link; portforward P pairs its streams
    server          HTTP: upgrade P reads the request, tokens P names the session, then stdio or forwarding
    sessions        what a session must offer; pods and containers implement it

Rules:
1. The protocol cores do no IO and raise nothing at hostile input: it becomes a `ProtocolError` event, and the
   connection ends.
2. Nothing is buffered without a bound. Neither SPDY as its clients speak it nor the channel protocols have flow
   control: back-pressure is not reading from the socket, or not reading from the process.
3. Whatever ends a session (its own end, the client, idleness, shutdown), it is closed exactly once, by a job.
"""
