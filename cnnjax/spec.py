"""Reads `name(1, key="value")`: how models, augmentations and schedules are written in a config.

Only Python literals are taken, so a config or a command line can never run code.
"""

import ast

from cnnjax.errors import UserError


def parse_call(text: str, what: str) -> tuple[str, list, dict]:
    """Splits a call of literals into its name, positional and named arguments.

    Args:
      text: `name` or `name(literal, field=literal)`.
      what: the config field that holds the text, for the error.

    Raises:
      UserError: where the text is anything else than a name with literals.
    """
    bad = UserError(f"{what}={text!r} is not a name or a call of literals such as 'crop(28, pad=4)'")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise bad from None
    if isinstance(node, ast.Name):
        return node.id, [], {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise bad
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {kw.arg: ast.literal_eval(kw.value) for kw in node.keywords}
    except (ValueError, TypeError, RecursionError):
        raise bad from None
    if None in kwargs or len(kwargs) < len(node.keywords):  # **more, or one name twice
        raise bad
    return node.func.id, args, kwargs
