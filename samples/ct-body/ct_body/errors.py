"""The one error that this application raises on purpose."""


class UnusableInputError(Exception):
    """The input cannot be segmented; the text says why, in words that hold no patient data."""
