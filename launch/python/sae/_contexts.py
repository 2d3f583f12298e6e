"""From texts to contexts: which tokens a model sees at once. The conventions are those of `sae harvest`.

Every context begins with what the tokenizer puts before a text (BOS, [CLS]) and ends with what it puts behind ([SEP]), as `bos` says. Special
tokens are put around token ids and never around text, so none comes twice; a text that spells BOS out itself loses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

# Texts that are handed to a tokenizer at once.
_TEXTS = 64


class Context(NamedTuple):
    """Tokens that are seen together."""

    tokens: list[int]
    docs: list[int]
    """For each token the text that it is of; special tokens are of the text beside them."""
    text: int
    """Where the next context begins: in this text,"""
    offset: int
    """behind so many of its tokens."""


class Special(NamedTuple):
    """Tokens around every context."""

    before: list[int]
    behind: list[int]

    @classmethod
    def of(cls, tokenizer: Any, bos: str) -> Special:
        """What a tokenizer does (`"auto"`), that with BOS in front (`"always"`), or nothing (`"never"`).

        Raises:
            ValueError: for another word, and for BOS of a tokenizer that has none.
        """
        if bos not in ("auto", "always", "never"):
            raise ValueError(f"bos {bos!r}: choose \"auto\", \"always\" or \"never\"")
        if bos == "never":
            return cls([], [])
        whole, bare = _ids(tokenizer, ["a"], True)[0], _ids(tokenizer, ["a"], False)[0]
        at = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), None)
        if at is None or not bare:
            raise ValueError("the tokenizer changes a text's tokens where it adds special ones: choose bos=\"never\"")
        before, behind = whole[:at], whole[at + len(bare) :]
        if bos == "always":
            first = tokenizer.bos_token_id
            # The id 0 is one like any other.
            if first is None:
                raise ValueError("the tokenizer has no BOS: choose bos=\"auto\" or \"never\"")
            before = before if before[:1] == [first] else [first, *before]
        return cls(before, behind)


def _ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    return [[int(token) for token in ids] for ids in encoded]


def _documents(tokenizer: Any, texts: Iterator[str], first: int, special: Special) -> Iterator[tuple[int, list[int]]]:
    """Texts from number `first` on, as tokens."""
    number = first
    while some := list(islice(texts, _TEXTS)):
        for text in some:
            if not isinstance(text, str):
                raise ValueError(f"text {number} is a {type(text).__name__}: texts are strings")
        for ids in _ids(tokenizer, some, False):
            # A text that begins with BOS itself would have it twice.
            yield number, ids[1:] if special.before and ids[:1] == special.before[:1] else ids
            number += 1


def contexts(
    tokenizer: Any, texts: Iterable[str], length: int, special: Special, packed: bool, start: tuple[int, int] = (0, 0)
) -> Iterator[Context]:
    """Contexts of `length` tokens, from a place in the texts on: tokens of consecutive texts without a gap, or (not `packed`) of one text
    each. The last one, and the last of each text, may be shorter.

    Raises:
        ValueError: when a context is too short for its special tokens and a text's, or a text is no string.
    """
    body = length - len(special.before) - len(special.behind)
    if body < 1:
        raise ValueError(f"a context of {length} tokens has no room besides its {length - body} special ones")
    text, offset = start
    remaining = iter(texts)
    for _ in islice(remaining, text):
        pass
    documents = ((number, ids[offset:] if number == text else ids, offset if number == text else 0) for number, ids in _documents(tokenizer, remaining, text, special))

    def wrapped(tokens: list[int], docs: list[int], after: tuple[int, int]) -> Context:
        before, behind = special
        all_docs = [docs[0]] * len(before) + docs + [docs[-1]] * len(behind)
        return Context([*before, *tokens, *behind], all_docs, *after)

    held: list[int] = []
    of: list[int] = []
    number = text - 1
    for number, ids, skipped in documents:
        at = 0
        while at < len(ids):
            take = min(body - len(held), len(ids) - at)
            held += ids[at : at + take]
            of += [number] * take
            at += take
            if len(held) == body:
                yield wrapped(held, of, (number, skipped + at) if at < len(ids) else (number + 1, 0))
                held, of = [], []
        if held and not packed:
            yield wrapped(held, of, (number + 1, 0))
            held, of = [], []
    if held:
        yield wrapped(held, of, (number + 1, 0))


def with_last(items: Iterator[Context]) -> Iterator[tuple[Context, bool]]:
    """Items, each with whether it is the last."""
    for item in items:
        following = next(items, None)
        while following is not None:
            yield item, False
            item, following = following, next(items, None)
        yield item, True
        return


