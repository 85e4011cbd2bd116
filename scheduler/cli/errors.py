"""How the command ends: its exit codes, and errors that tell the user what to do next."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What `lepton` exits with. `wait` and `submit --wait` pass the job's own code on."""

    DONE = 0
    ERROR = 1
    CANNOT_BE_PLACED = 2
    USAGE = 64  # EX_USAGE of sysexits.h: 2 is taken
    TIMED_OUT = 124  # as timeout(1)
    CANCELLED = 125
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE


EXIT_CODES_HELP = (
    ("0", "done; with explain and dry runs: it can start now"),
    ("1", "an error, or a job that failed without an exit code"),
    ("2", "it cannot be placed now (explain, --dry-run); plan: goals out of reach"),
    ("64", "the command line or a file is wrong"),
    ("124", "wait: the job's time limit, or --timeout, passed"),
    ("125", "wait: the job was cancelled"),
    ("128+N", "wait: a task was killed by signal N; 130: you pressed Ctrl-C"),
    ("other", "wait and submit --wait: the job's own exit code"),
)


class CommandError(Exception):
    """Something went wrong that the user should read about: no traceback."""

    def __init__(
        self, message: str, *, hint: str = "", code: ExitCode = ExitCode.ERROR
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class ReaderGone(Exception):
    """Whoever read our output has stopped reading."""
