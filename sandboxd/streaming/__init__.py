"""Exec, attach and port-forward for kubectl, crictl and every other CRI client.

An RPC only returns a URL with a single-use token (`server.url_for`); the client then connects to the server here.
Three transports carry the same named byte streams:

    link            one TCP connection: reading, back-pressure, idle time-out, closing
    ├── spdy                 P    SPDY/3.1; spdy_headers P is its compressed header block
    ├── websocket Channels        one WebSocket, a channel number before each message; channels P is the framing
    └── websocket Tunnel          SPDY/3.1 inside WebSocket messages
    stdio           exec and attach over a link; remotecommand P has what their protocols share
    forwarding      port-forward over a link; portforward P pairs its streams
    server          HTTP: exchange P reads the request, upgrade P; tokens P names the session of stdio or forwarding
    sessions        the interface of a session; pods and containers implement it

Rules:
1. The protocol cores do no IO and raise nothing on hostile input: it becomes a `ProtocolError` event, and the
   connection ends.
2. Every buffer is bounded. SPDY as its clients use it and the channel protocols have no flow control, so
   back-pressure means to stop reading from the socket or from the process.
3. However a session ends (by itself, by the client, an idle time-out or shutdown), it is closed exactly once, by a
   job.
"""
