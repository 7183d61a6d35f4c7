"""`python -m nodes` is `mesh`, and where that begins: before anything that takes long to import."""

import os


def main() -> None:
    """Entry point of the `mesh` command."""
    try:
        from nodes.cli import main as run

        run()
    except KeyboardInterrupt:  # while modules were being imported; see `nodes.output.leave` for the way out
        os._exit(130)


if __name__ == "__main__":
    main()
