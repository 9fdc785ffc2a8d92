"""The exceptions that mean 'the user can mend this'."""


class UserError(Exception):
    """A mistake in what the user handed in: one line saying what is wrong, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class NotFinite(UserError):
    """What a network says is no number. Whoever knows which weights are in it says more than `advice`, which is for a
    base as it was loaded."""

    def __init__(self, found: str, advice: str = "try dtype=bfloat16 or dtype=float32") -> None:
        """Take what is not finite, named ("a/b/0: its answer's likelihood is not finite"), and what to do."""
        super().__init__(found, advice)  # Both, so that it can be sent to other processes.
        self.found, self.advice = found, advice

    def __str__(self) -> str:
        return f"{self.found}; {self.advice}"
