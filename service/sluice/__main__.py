"""`python -m sluice` and the `sluice` script: the only place where the command line meets the app."""

import sys

from sluice import cli
from sluice.app import run_server


def main() -> None:
    sys.exit(cli.main(sys.argv[1:], run_server=run_server))


if __name__ == "__main__":
    main()
