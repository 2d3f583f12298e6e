"""From texts to contexts: which tokens a model sees at once. The conventions are those of `sae harvest`.

Packed, the tokens of all texts follow each other and are cut into contexts of one length; otherwise a context is of one text. What the tokenizer
puts around a text (BOS, [CLS] and [SEP]) stands around each context, as `bos` says. Where that is a token in front, and the model attends one way,
a text that begins inside of a packed context has it too, unless the text before ended in one; where only BOS would still fit, the context ends
before it. Special tokens are put around token ids and never around text, so none comes twice; a text that begins with BOS itself, however
often, loses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import xxhash

# Texts that are handed to a tokenizer at once.
_TEXTS = 64
# Where texts are not those of before.
_REMEDY = "hand over the same texts in the same order, or name an empty folder"


class Context(NamedTuple):
    """Tokens that are seen together."""

    tokens: list[int]
    docs: list[int]
    """For each token the text that it is of; special tokens are of the text beside them."""
    text: int
    """Where the next context begins: in this text,"""
    offset: int
    """behind so many of its tokens."""


class Texts:
    """Texts in their order, with a hash of all of them up to each, which is held against what is remembered of an earlier pass."""

    def __init__(self, texts: Iterable[str], known: Mapping[int, str], first: int) -> None:
        """`known`: hashes by the number of the last text that they are of. Those from text `first` on may be asked for."""
        self._texts, self._known, self._first = texts, known, first
        self._digest = xxhash.xxh3_64()
        self._hashes: dict[int, str] = {}

    def __iter__(self) -> Iterator[str]:
        """
        Raises:
            ValueError: when a text is no string, and at the first that is known by another hash.
        """
        number = -1
        for number, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise ValueError(f"text {number} is a {type(text).__name__}: texts are strings")
            # A lone surrogate is for the tokenizer to refuse.
            data = text.encode(errors="surrogatepass")
            self._digest.update(len(data).to_bytes(8, "little") + data)
            if number >= self._first:
                self._hashes[number] = self._digest.hexdigest()
            if number in self._known and self._known[number] != self._digest.hexdigest():
                self.refuse_others(number)
            yield text
        if any(last > number for last in self._known):
            raise ValueError(f"there are {number + 1} texts, and the folder was begun with at least {max(self._known) + 1}: {_REMEDY}")

    def refuse_others(self, number: int) -> None:
        """
        Raises:
            ValueError: for texts up to this one, which make other contexts.
        """
        raise ValueError(f"the first {number + 1} texts are not those that the folder was begun with: {_REMEDY}")

    def refuse_more(self, number: int) -> None:
        """
        Raises:
            ValueError: for a text behind the last that has tokens.
        """
        raise ValueError(f"text {number} goes on behind the last that the folder was begun with: {_REMEDY}")

    def hash_through(self, number: int) -> str:
        """Of all texts up to this one, which was read; numbers rise from call to call."""
        for earlier in [of for of in self._hashes if of < number]:
            del self._hashes[earlier]
        return self._hashes[number]


class Special(NamedTuple):
    """Tokens around every context."""

    before: list[int]
    behind: list[int]

    @classmethod
    def of(cls, tokenizer: Any, bos: str, config: Any = None) -> Special:
        """What a tokenizer does (`"auto"`), BOS also where it puts nothing in front (`"always"`), or nothing (`"never"`). BOS is the tokenizer's, else its
        [CLS], else that of the model's config, as in loader/harvest/src/tokens/special.rs.

        Raises:
            ValueError: for another word, and for BOS where there is none.
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
        if bos == "always" and not before:
            named = [(tokenizer, "bos_token_id"), (tokenizer, "cls_token_id"), (config, "bos_token_id")]
            # The id 0 is one like any other.
            first = next((token for of, name in named if isinstance(token := getattr(of, name, None), int)), None)
            if first is None:
                raise ValueError("neither the tokenizer nor the model has a BOS: choose bos=\"auto\" or \"never\"")
            before = [first]
        return cls(before, behind)


def _ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    encoded = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    return [[int(token) for token in ids] for ids in encoded]


class Form(NamedTuple):
    """How contexts are made."""

    length: int
    """Tokens, special ones included."""
    special: Special
    packed: bool
    """Whether tokens of several texts share a context."""
    marks_texts: bool
    """Whether BOS stands before a text inside of a context, too."""
    keep_first: bool
    """Whether the rows of attention sinks are kept; a context without any other is left out otherwise."""
    vocabulary: int
    """Tokens that the model knows."""

    def keeps(self, tokens: list[int]) -> list[bool]:
        """Which tokens of a context have a row that is kept: all, or those that are no attention sinks, which are the first of a context and, where
        texts are marked by BOS inside of it, BOS."""
        bos = self.special.before[-1] if self.marks_texts else None
        return [self.keep_first or at > 0 and token != bos for at, token in enumerate(tokens)]

    def check(self) -> None:
        """
        Raises:
            ValueError: when special tokens leave no room for those of texts, or are none of the model's.
        """
        self.check_tokens("the tokenizer puts around a text", [*self.special.before, *self.special.behind])
        around = len(self.special.before) + len(self.special.behind)
        if self.length <= around or self.length < 2:
            raise ValueError(f"contexts of {self.length} tokens have no room: {around} special ones stand around those of texts")

    def check_tokens(self, said: str, tokens: list[int]) -> None:
        """
        Raises:
            ValueError: for a token that the model does not know; `said` begins what is said of it.
        """
        if tokens and max(tokens) >= self.vocabulary:
            raise ValueError(
                f"{said} token {max(tokens)}, and the model has {self.vocabulary}: it is the tokenizer of another model, or has more tokens since: "
                "hand over the model's own"
            )


def _documents(tokenizer: Any, texts: Iterator[str], first: int, form: Form) -> Iterator[tuple[int, list[int]]]:
    """Texts from number `first` on, as tokens; those without any are left out.

    Raises:
        ValueError: for a token that the model does not know.
    """
    number = first
    while some := list(islice(texts, _TEXTS)):
        for ids in _ids(tokenizer, some, False):
            form.check_tokens(f"text {number} has", ids)
            # A text that begins with the token that stands in front of it anyway.
            while ids and ids[:1] == form.special.before[-1:]:
                ids = ids[1:]
            if ids:
                yield number, ids
            number += 1


def contexts(tokenizer: Any, texts: Texts, form: Form, start: tuple[int, int] = (0, 0)) -> Iterator[Context]:
    """Contexts from a place in the texts on. The last one, and without `packed` the last of each text, may be shorter; one that ends where BOS
    would be its last token is shorter by that.

    Raises:
        ValueError: those of `Texts`, and for a token that the model does not know.
    """
    before, behind = form.special
    end = form.length - len(behind)
    remaining = iter(texts)
    for _ in islice(remaining, start[0]):
        pass
    documents = _documents(tokenizer, remaining, start[0], form)
    number, used = start[0], 0
    ids: list[int] = []
    is_first = True
    while True:
        tokens: list[int] = []
        docs: list[int] = []
        while len(tokens) < end:
            if used == len(ids):
                following = next(documents, None)
                if following is None:
                    break
                number, ids = following
                used = start[1] if is_first and number == start[0] else 0
                is_first = False
                if used >= len(ids):
                    continue
            if not tokens:
                # A text that goes on with that token.
                while used < len(ids) and ids[used : used + 1] == before[-1:]:
                    used += 1
                if used == len(ids):
                    continue
                tokens, docs = list(before), [number] * len(before)
            elif not form.packed:
                break
            elif used == 0 and form.marks_texts and tokens[-1] != before[-1]:
                if len(tokens) + 1 == end:
                    break
                tokens.append(before[-1])
                docs.append(number)
            take = min(end - len(tokens), len(ids) - used)
            tokens += ids[used : used + take]
            docs += [number] * take
            used += take
        if not docs:
            return
        tokens, docs = [*tokens, *behind], docs + [docs[-1]] * len(behind)
        if any(form.keeps(tokens)):
            yield Context(tokens, docs, *((number, used) if used < len(ids) else (number + 1, 0)))


def with_last(items: Iterator[Context]) -> Iterator[tuple[Context, bool]]:
    """Items, each with whether it is the last."""
    for item in items:
        following = next(items, None)
        while following is not None:
            yield item, False
            item, following = following, next(items, None)
        yield item, True
        return


