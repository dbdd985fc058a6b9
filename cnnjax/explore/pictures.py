"""The small pictures that a CNN's first ideas are shown on: digits, crosses, a loop filter, a 4x4 map."""

import numpy as np

# Ink is #, paper is a dot; a picture is written as its rows.
PICTURES = {
    "9": ".###. .#.#. .###. ...#. ...#. ..#.. .#...",
    "6": "...#. ..#.. .#... .#... .###. .#.#. .###.",
    "8": ".###. .#.#. .###. ..... .###. .#.#. .###.",
    "7": ".###. ...#. ...#. ..#.. ..#.. .#... .#...",
    "X": "......... .#.....#. ..#...#.. ...#.#... ....#.... ...#.#... ..#...#.. .#.....#. .........",
    "bent X": "......... ......#.. .#...#... ..##.#... ....#.... ...#.##.. ...#...#. ..#...... .........",
}
FILTERS = {
    "loop": "### #.# ###",
    "falling stroke": "#.. .#. ..#",
    "rising stroke": "..# .#. #..",
    "cross": "#.# .#. #.#",
}
WORDS = ("96",)  # pictures side by side
POOLING = np.array([[5, 1, 3, 4], [8, 2, 9, 2], [1, 3, 0, 1], [2, 2, 2, 0]], np.float32)


def picture(name: str) -> np.ndarray:
    """A picture by name, ink 1 and paper -1: float32 [H, W]; "96" and the like stand side by side."""
    if name not in PICTURES and len(name) > 1:
        return np.hstack([picture(letter) for letter in name])
    return _matrix(PICTURES[name])


def feature(name: str) -> np.ndarray:
    """A filter by name, of +-1 over their number: its match with itself is 1. float32 [3, 3]."""
    return _matrix(FILTERS[name]) / 9


def _matrix(rows: str) -> np.ndarray:
    return np.array([[1 if c == "#" else -1 for c in row] for row in rows.split()], np.float32)
