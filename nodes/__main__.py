"""`python -m nodes` is `mesh`, and where that begins: before anything that takes long to import."""

import os
import sys


def main() -> None:
    """Entry point of the `mesh` command."""
    try:
        from nodes.output import leave
        from nodes.quick import run_quickly

        code = run_quickly(sys.argv[1:])
        if code is None:
            from nodes.cli import run_command

            code = run_command(sys.argv[1:])
        leave(code)
    except KeyboardInterrupt:  # while modules were being imported; see `nodes.output.leave` for the way out
        os._exit(130)


if __name__ == "__main__":
    main()
