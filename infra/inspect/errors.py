"""The one error of the reading side."""


class InspectError(Exception):
    """What was asked for cannot be read or is not there; `next_step` is what to type, empty if there is nothing."""

    def __init__(self, what: str, why: str = "", next_step: str = "") -> None:
        super().__init__(what, why, next_step)
        self.what = what
        self.why = why
        self.next_step = next_step

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, f"({self.why})" if self.why else "") if part)
