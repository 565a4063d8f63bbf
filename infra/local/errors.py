"""The one error of the local stack: what failed, why, and what to type next."""


class StackError(Exception):
    """A failure of the world (port, network, Java, disk), never a bug of ours.

    `next_step` is a command or an action for the reader, empty if there is none.
    """

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what, why, next_step)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        return "; ".join(part for part in (self.what, self.why, self.next_step) if part)


class NotRunningError(StackError):
    """Nothing runs in the data directory."""


class ConfigurationError(StackError):
    """A flag, variable or file has a value that cannot work."""
