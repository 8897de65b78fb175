"""sandboxctl: pods for people, over the daemon's socket and nothing else.

    parse.py       P  one flag's text → a value, or a sentence that says what was expected
    configs.py     P  flags or crictl's files → the CRI messages that are sent
    names.py       P  what a person calls a pod or container → the one that is meant
    render.py      P  answers → tables for people, JSON and YAML for programs
    timeline.py    P  Explain's answer → the story of a pod
    client.py         the channel; a failed call → a message with an exit code
    progress.py       bars on a terminal, lines elsewhere
    credentials.py    who pulls: from flags and stdin
    pulling.py        a pull that is watched
    session.py        what every command shares: connection, streams, flags, lookups
    commands_*.py     the commands, by noun
    commands.py       puts them together; `main` is the console script

Imports sandboxd.pb and itself, so that a client can be installed and read without the daemon.

Exit codes: 0 done, 1 the request failed, 2 usage, 3 not found, 4 the daemon cannot be reached or is not ready,
130 interrupted.
"""
