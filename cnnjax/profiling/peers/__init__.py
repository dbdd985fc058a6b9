"""The same work in other frameworks, each a process of its own beside `cnnjax bench`.

`process` starts one and asks it, `serve` answers inside it; every other file is one framework.
"""
