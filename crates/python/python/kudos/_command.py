"""The ``kudos`` command."""

import signal
import sys

from kudos import _kudos


def main() -> int:
    """Runs the command line of this process, and returns its exit status."""
    # Ctrl-C ends the process at once, without a KeyboardInterrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _kudos.main(["kudos", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
