"""What a stage raises when its input or its own result is not what it must be."""


class StageError(ValueError):
    """One clear line: what was found, what was wanted, what to do."""


class NotFinite(StageError):
    """A loss, a gradient or a metric of training is NaN or infinite."""
