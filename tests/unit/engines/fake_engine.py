"""A process that does what a test tells it: `fake_engine.py SOCKET`. It connects there, says its pid, and obeys lines.

    print TEXT    write a line to its output; answers
    exit N        end with that code
    ignore        take no notice of SIGTERM from now on; answers
    spawn [new]   start a child, maybe in a new session; answers with its pid

SIGTERM ends it with code 42; so does the end of the connection.
"""

import os
import signal
import socket
import sys


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    stream = connection.makefile("rw")

    def say(text: object) -> None:
        stream.write(f"{text}\n")
        stream.flush()

    say(os.getpid())
    for line in stream:
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "print":
                print(rest, flush=True)
                say("printed")
            case "exit":
                os._exit(int(rest))
            case "ignore":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                say("ignoring")
            case "spawn":
                child = os.fork()
                if child == 0:
                    if rest == "new":
                        os.setsid()
                    say(os.getpid())
                    signal.pause()
    os._exit(42)


if __name__ == "__main__":
    main()
