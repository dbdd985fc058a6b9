"""The same work in other frameworks, each in its own process next to `cnnjax bench`.

`process` starts one and asks it, `serve` answers inside it; every other file is one framework.
"""
