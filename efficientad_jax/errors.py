"""What can go wrong for a user, said in one line."""


class InputError(ValueError):
    """Something given from outside (a file, a folder, a configuration) cannot be used.

    The message is one line: what it is about, what was found, what was expected and what to do.
    The commands in `experiments` print it alone, without a traceback, and exit with status 2.
    """


class DivergenceError(ArithmeticError):
    """A loss is no longer a finite number. The message is one line, as for `InputError`."""
