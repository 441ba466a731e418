"""The typed errors: each names the axis that failed and the fix.

Four classes, by who has to act. A user's mistake never shows a traceback: the CLI prints `where`, `why`
and `fix` and leaves with `exit_code`.
"""


class PocketportError(Exception):
    """Base of every error that Pocketport raises on purpose.

    Args:
        why: one sentence that says what is wrong.
        where: the axis that failed: a file, tensor, op, recipe key, SoC or SDK version.
        fix: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, why: str, *, where: str, fix: str) -> None:
        super().__init__(f"{where}: {why} (fix: {fix})")
        self.why = why
        self.where = where
        self.fix = fix

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Errors cross from worker processes to the parent whole."""
        return (_rebuild, (type(self), self.why, self.where, self.fix))


def _rebuild(kind: type[PocketportError], why: str, where: str, fix: str) -> PocketportError:
    return kind(why, where=where, fix=fix)


class InputError(PocketportError):
    """A file that was given is damaged, hostile, or not what it claims to be."""


class UsageError(PocketportError):
    """A name, key, flag or target that does not exist, or a combination that makes no sense."""


class ToolchainError(PocketportError):
    """A vendor's toolchain is missing, refused the model, crashed, hung or ran out of memory."""


class VerificationError(PocketportError):
    """A claim did not hold: parity was lost, a step did nothing, an artifact is not what was asked for."""

    exit_code = 1
