"""The exception that every mistake of the user's raises."""


class UserError(ValueError):
    """A mistake that the user can correct: one line with what is wrong, where, found, expected.

    The command line prints the message and exits with code 2; the API raises it as it is.
    """

    def __init__(self, message: str = "") -> None:
        # A name in somebody's file may hold line ends, or what a terminal would obey.
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(shown))
