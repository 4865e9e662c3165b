"""The exception that every mistake of the user's raises."""


class UserError(ValueError):
    """A mistake that the user can correct: one line with what is wrong, where, found, expected.

    The command line prints the message and exits with code 2; the API raises it as it is.
    """
