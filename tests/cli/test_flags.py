"""Flags: the annotated keywords of a function, with their types, bounds, help and shared ones."""

from typing import Annotated as Flag

import pytest

from cnnjax.cli.flags import Json, command, given
from cnnjax.errors import UserError


def shared(*, size: Flag[int, "pixels of the side", 1, 64] = 8, name: Flag[str | None, "a name"] = None):
    """Flags of several commands."""


@command("show", words=2, like=shared)
def show(
    words: list[str],
    *,
    share: Flag[float, "of the whole", 0.0] = 0.5,
    many: Flag[list, "may be repeated"] = [],  # noqa: B006, absl copies it
    json: Json = False,
    name: Flag[str | None, "another meaning"] = "own",
    **rest: int,
) -> int:
    CALLS.append((words, share, many, json, name, rest))
    return 7


CALLS: list = []


def test_values_have_their_types_and_own_flags_replace_shared_ones():
    assert show(["a", "--size=3", "--share", "1", "--many=x", "--many=y", "--json"]) == 7
    assert CALLS.pop() == (["a"], 1.0, ["x", "y"], True, "own", {"size": 3})
    show(["--nojson", "--name=n"])
    assert CALLS.pop() == ([], 0.5, [], False, "n", {"size": 8})


def test_a_value_after_an_equals_sign_may_look_like_a_flag():
    show(["--name=--json", "--name", "-x", "--many", "-json", "--share", "1"])
    assert CALLS.pop() == ([], 1.0, ["-json"], False, "-x", {"size": 8})
    show(["--name=--json"])
    assert CALLS.pop()[4] == "--json"


def test_words_after_two_dashes_are_no_flags():
    show(["--", "--size=3", "--help"])
    assert CALLS.pop()[0] == ["--size=3", "--help"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--size=0"], "size"),
        (["--size=65"], "size"),
        (["--size=many"], "--size=many must be a whole number"),
        (["--size=1e3"], "--size=1e3 must be a whole number"),
        (["--size="], "--size= must be a whole number"),
        (["--share=half"], "--share=half must be a number"),
        (["--json=maybe"], "--json=maybe must be true or false"),
        (["--name="], "--name= is empty (an unset variable?); give a value, or leave it out"),
        (["--name", ""], "--name= is empty"),
        (["--many=x", "--many="], "--many= is empty"),
        (["--name", "--json"], "--name has no value; write --name=VALUE"),
        (["--size", "--json"], "--size has no value"),
        (["--many=x", "--many"], "--many has no value"),
        (["--name", "--", "a"], "--name has no value"),
        (["--share=-1"], "share"),
        (["--share=nan"], "--share=nan must be a finite number"),
        (["--share=1e999"], "--share=inf must be a finite number"),
        (["--size=99999999999999999999"], "size"),
        (["--sise=1"], "unknown flag of cnnjax show '--sise' (did you mean '--size'?)"),
        (["a", "b", "c"], "cnnjax show does not take 'c'"),
    ],
)
def test_a_mistake_is_told_in_one_line(args, words):
    with pytest.raises(UserError) as error:
        show(args)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not CALLS


@command("look")
def look(
    *, workdir: Flag[str | None, "run folder"] = None, data: Flag[str | None, "data set"] = None
) -> None:
    """A command that takes folders by their flags alone."""


@pytest.mark.parametrize("flag", ["workdir", "data"])
def test_a_folder_without_its_flag_is_told_how_to_write_it(flag, tmp_path):
    if flag == "workdir":
        (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=f"does not take '{tmp_path}'; write --{flag}={tmp_path}$"):
        look([str(tmp_path)])
    with pytest.raises(UserError, match="does not take 'nowhere'; flags are --name=value"):
        look(["nowhere"])


def test_help_prints_every_flag_with_its_meaning(capsys):
    assert show(["--help"]) == 0
    printed = capsys.readouterr().out
    for text in ("--size", "pixels of the side", "--share", "of the whole", "--many", "another meaning"):
        assert text in printed
    assert not CALLS


def test_a_missing_value_says_what_to_give():
    assert given("out", "x", "name a file") == "x"
    with pytest.raises(UserError, match="--out is missing; name a file"):
        given("out", None, "name a file")
