"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """Bad input, said in one sentence.

    The message names the key or file, what it held, what was expected and what to do.
    Commands print it without a traceback and exit with status 2.
    """
