"""Text between two marks of a document: read it, replace it."""

from multistep_cm.errors import UserError


def split_at_marks(
    text: str, begin: str, end: str, name: str = "the document"
) -> tuple[str, str, str]:
    """What stands before the mark `begin`, between the marks, and after `end`.

    Raises UserError, with the document's `name`, when a mark is missing.
    """
    before, found, rest = text.partition(begin)
    inside, ended, after = rest.partition(end)
    if not found or not ended:
        raise UserError(f"{name} lacks the marks {begin} and {end}")
    return before, inside, after


def replace_between(
    text: str, begin: str, end: str, new: str, name: str = "the document"
) -> str:
    """`text` with `new` on lines of its own between the marks, which stay.

    Raises UserError, with the document's `name`, when a mark is missing.
    """
    before, _, after = split_at_marks(text, begin, end, name)
    return f"{before}{begin}\n{new}\n{end}{after}"
