"""`cnnjax push`: a trained network as a repository of the Hugging Face Hub, or the same folder here."""

from typing import Annotated as Flag

from cnnjax.cli.flags import command
from cnnjax.cli.predict import load
from cnnjax.cli.tables import say
from cnnjax.errors import UserError


@command("push", words=1, like=load)
def push(
    words: list[str],
    *,
    out: Flag[str | None, "folder to write instead of uploading"] = None,
    license: Flag[str, "licence identifier, such as apache-2.0 (default: that of the weights, if any)"] = "",
    private: Flag[bool, "create the repository as private"] = False,
    **run: str,
) -> None:
    """Writes a network as a repository of the Hub: safetensors, config.json, a card with its scores."""
    if bool(words) == bool(out) or not all(word.startswith("hf:") for word in words):
        raise UserError(
            "usage: cnnjax push --workdir=DIR hf:USER/NAME, or cnnjax push --workdir=DIR --out=DIR"
        )
    if out and private:
        raise UserError("--private is for a repository of the Hub; leave it out with --out")
    from cnnjax.inference import push as push_lib
    from cnnjax.runs import loaded

    trained = loaded.load(**run)
    if out:
        say(f"wrote {push_lib.write(trained, out, license)}")
    else:
        repository = words[0].removeprefix("hf:")
        say(f"wrote {push_lib.push(trained, repository, license, private=private)}")
