"""The command line: `neuroshed`, and `python -m neuroshed`."""

from neuroshed.interrupts import end_at_once


def main() -> None:
    """Run the command that this process was started with."""
    # Before the imports, which take longest.
    end_at_once()
    from neuroshed.cli import main as commands

    commands(prog_name="neuroshed")


if __name__ == "__main__":
    main()
