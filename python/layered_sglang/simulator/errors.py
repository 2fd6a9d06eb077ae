"""The one-line refusal of the command."""


class SimulationError(ValueError):
    """A flag or a file that cannot be simulated. The message is one line: what, why, what to do."""
