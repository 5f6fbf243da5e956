"""Publishing an erasure without the name of what was erased.

The name gives way to a salted hash, so that who knows the name can check it. A guess costs one scrypt over 64 MiB:
trying a million names takes a core days rather than a second, and still a name that is among them is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from ..adapter import fetch_adapter
from ..tuner import SIDE_FILE, SpaceConfig
from ..untrusted import is_texts

HASH_KEY = "concept_hash"
"""Where the `record` of a redacted adapter keeps the hash."""

# RFC 7914; memory is 128 * n * r bytes
_COST = {"n": 2**16, "r": 8, "p": 1}
_MOST_MEMORY = 2**30
_HEX = re.compile(r"([0-9a-f]{2}){1,64}")

# words of a name that say nothing by themselves
_FILLERS = frozenset("the and for von van der den del los las une das die with from".split())


def hash_names(names: Iterable[str]) -> dict[str, Any]:
    """A salted hash of each name, as JSON: `kdf`, its costs `n`, `r` and `p`, `salt` and `digests`, in hex.

    Source: scrypt, RFC 7914. Upper and lower case, accents' encoding and white space make no difference.
    """
    salt = secrets.token_bytes(16)
    digests = [_digest(name, salt, **_COST) for name in names]
    return {"kdf": "scrypt", **_COST, "salt": salt.hex(), "digests": sorted(digests)}


def verify_redacted(repo_or_path: str | os.PathLike[str], name: str, **hub_kwargs: Any) -> bool:
    """Whether a name, or an alias, is what a redacted erasure was made for.

    Args:
        repo_or_path: folder or Hub id.
        name: what you think was erased.
        **hub_kwargs: as for `load_erasure`.

    Raises:
        ValueError: `name` is empty, or the erasure is not redacted or hashed in a way that is not known.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"`name` must be a non-empty name; got {name!r}.")
    folder = fetch_adapter(repo_or_path, ("adapter_config.json", SIDE_FILE), **hub_kwargs)
    hashed = SpaceConfig.from_pretrained(folder).record.get(HASH_KEY)
    if hashed is None:
        raise ValueError(
            f"`repo_or_path` must be a redacted erasure; got {str(repo_or_path)!r}, which has no `{HASH_KEY}`. Do "
            "read the name in its model card."
        )
    hashed = hashed if isinstance(hashed, dict) else {}
    costs: dict[str, Any] = {key: hashed.get(key) for key in _COST}
    salt: Any = hashed.get("salt")
    digests: Any = hashed.get("digests")
    known = hashed.get("kdf") == "scrypt" and all(isinstance(cost, int) and cost > 0 for cost in costs.values())
    known = known and isinstance(salt, str) and _HEX.fullmatch(salt) is not None and is_texts(digests)
    if not known or 128 * costs["n"] * costs["r"] * costs["p"] > _MOST_MEMORY or costs["n"] & (costs["n"] - 1):
        raise ValueError(
            f"`{HASH_KEY}` must be an scrypt hash of at most {_MOST_MEMORY >> 20} MiB; got {hashed.get('kdf')!r:.100} "
            f"with {costs!r:.100}. Do update `peft_space`, or distrust the repository."
        )
    return _digest(name, bytes.fromhex(salt), **costs) in digests


def _digest(name: str, salt: bytes, n: int, r: int, p: int) -> str:
    text = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
    return hashlib.scrypt(text.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r * p, dklen=32).hex()


@dataclass(frozen=True)
class Redaction:
    """What may not be seen in a repository.

    Attributes:
        names: the concept's name and its aliases.
        vocabulary: the words that the repository holds whatever was erased. What is one of them identifies nothing.

    Raises:
        ValueError: a name is itself one of those words, so that it can't be kept out.
    """

    names: tuple[str, ...]
    vocabulary: str

    def __post_init__(self) -> None:
        for name in self.names:
            if _within(_folded(name), _folded(self.vocabulary), whole=True):
                raise ValueError(
                    f"`redact` must be about a name that other adapters do not hold; got {name!r}, which every "
                    "adapter for this base has in its model card or module names. Do push it to a private repository "
                    "instead."
                )

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """The names, and those of their words that tell who is meant; without case and accents."""
        words = {
            word for name in self.names for word in re.findall(r"[^\W_]{3,}", _folded(name)) if not word.isdigit()
        } - _FILLERS
        known = _folded(self.vocabulary)
        telling = {word for word in words if not _within(word, known, whole=True)}
        return tuple(sorted({_folded(name) for name in self.names} | telling, key=lambda term: (-len(term), term)))

    def tells(self, text: str) -> str | None:
        """The first of the terms that a text holds, or `None`; inside a longer word too."""
        folded = _folded(text)
        return next((term for term in self.terms if term in folded), None)

    def check(self, folder: Path, hashed: Mapping[str, Any]) -> None:
        """Make sure that no file in a folder tells the name.

        Of weights and pictures everything that is text is read: names, headers and metadata.

        Args:
            folder: what is about to be pushed.
            hashed: the hash that stands in, whose digits may spell anything.

        Raises:
            ValueError: one does.
        """
        known = _folded(self.vocabulary)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            text = f"{file.relative_to(folder)}\n{_text_of(file)}"
            for digits in (hashed["salt"], *hashed["digests"]):
                text = text.replace(digits, "")
            folded = _folded(text)
            for term in self.terms:
                # a term inside a word of ours ("rain" in "trained") is none
                if _within(term, folded, whole=term in known):
                    raise ValueError(
                        f"`redact` must keep {term!r} out of every file; it is in {file.name}. Do take it out of the "
                        "adapter's folder, or push without `redact`."
                    )


def _text_of(file: Path) -> str:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as weights:
            return "\n".join([*weights.keys(), json.dumps(weights.metadata(), ensure_ascii=False)])
    if file.suffix == ".png":
        with Image.open(file) as image:
            image.load()
            return str(image.info)
    text = file.read_text(encoding="utf-8")
    return text + json.dumps(json.loads(text), ensure_ascii=False) if file.suffix == ".json" else text


def _folded(text: str) -> str:
    """Without case and accents, words apart by single blanks, whatever was between them in a name."""
    parts = unicodedata.normalize("NFKD", text.upper().casefold())
    plain = "".join(c for c in parts if not unicodedata.combining(c)).casefold()
    return re.sub(r"[\s_\-]+", " ", plain).strip()


def _within(term: str, text: str, whole: bool) -> bool:
    if not whole:
        return term in text
    return re.search(rf"(?<![^\W_]){re.escape(term)}(?![^\W_])", text) is not None
