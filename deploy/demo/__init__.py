"""`make demo` and `make demo-down`: the story on this machine, and the machine as it was.

places      where the demo keeps everything: directories of its own, beside any real installation
before      what the machine looked like, written down first and put back last
up, down    the two commands
story       the telling: each step with its time
"""
