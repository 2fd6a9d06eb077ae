"""The one-line refusal of the command."""


class CalibrationError(ValueError):
    """Calibration cannot go on. The message is one line: what, why, what to do."""
