"""The one exception a user's mistake raises."""


class UserError(ValueError):
    """A mistake the user can mend: one line that says what, where, found and expected.

    The command line prints the message and exits with code 2; the API raises it as it is.
    """
