"""sandboxctl: pods for people, only over the daemon's socket.

    parse.py       P  one flag's text → a value, or a sentence that says what is expected
    configs.py     P  flags or crictl's files → CRI messages
    names.py       P  a name or id of a pod or container → the object
    render.py      P  answers → tables for people, JSON and YAML for programs
    timeline.py    P  Explain's answer → the timeline of a pod, as text
    page.py        P  the same as one HTML page, of:
    waterfall.py   P      steps, with a bar for each
    topology.py    P      what the pod's network consists of, as far as it is recorded,
    drawing.py     P      and that as SVG
    markup.py      P      HTML in which every text is escaped
    stylesheet.py  P      how it looks
    changes.py     P  Explain's answer → what each plugin changed on the machine, as text and data
    by_hand.py     P  Explain's answer → what a person would type instead; the containers are ctr.py's
    ctr.py         P  a pod's containers → commands of containerd's own client
    shell.py       P  text → words and comments for a shell
    executions.py  P  the executions of plugins in Explain's answer, and which one is meant
    replayed.py    P  Replay's answer → text, and what differs
    rates.py       P  two samples of what pods use → what they use a second
    happenings.py  P  events → lines
    present.py     P  what goes on now, one look after the other
    screen.py         a terminal that is drawn again and again
    client.py         the channel; a failed call → a message with an exit code
    progress.py       bars on a terminal, lines elsewhere
    files.py          files that are written: whole, or not at all
    credentials.py    a registry's user and password, from flags and stdin
    pulling.py        a pull with its progress
    session.py        shared by all commands: connection, streams, flags, lookups
    commands_*.py     the commands, by noun
    commands.py       the command group; `main` is the console script

Imports only sandboxd.pb and itself, so that the client can be installed and read without the daemon.

Exit codes: 0 success, 1 the request failed, 2 usage, 3 not found, 4 the daemon cannot be reached or is not ready,
130 interrupted.
"""
