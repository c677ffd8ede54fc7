"""The one exception that means: the user can mend this."""

LONGEST = 2000
"""Characters of a sentence; what a user gave may be longer, and is cut."""


class UserError(Exception):
    """Bad input, said in one sentence.

    The message names the key or file, what it held, what was expected and what to do.
    Commands print it without a traceback and exit with status 2. Whatever stands in it
    (a file's name, a library's words) it is one line that any terminal can print.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    """The text in one printable line: breaks are spaces, the rest is escaped or cut."""
    if len(text) > LONGEST:
        half = LONGEST // 2 - 2
        text = f"{text[:half]} .. {text[-half:]}"
    if text.isprintable():
        return text
    text = " ".join(filter(None, (line.strip() for line in text.splitlines())))
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
