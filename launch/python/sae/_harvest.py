"""Residual streams of `transformers` models as shards."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from ._arguments import boolean, integer
from ._arrays import SIZES, dtype_name, stored
from ._columns import KNOWN, arrays
from ._contexts import Context, Form, Special, Texts, contexts, with_last
from ._parts import Marker, Parts, shard_name
from ._shard import Layout
from ._store import Store
from ._writer import Buffered, checked_source, checked_width

_LOG = logging.getLogger("sae")
_CONTEXTS = pa.schema(
    [
        pa.field("context_id", pa.uint64(), nullable=False),
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("token_ids", pa.list_(pa.field("item", pa.uint32(), nullable=False)), nullable=False),
    ]
)
# A hundredth of the rows that carries more of E‖x‖² than this makes the scale of the data its own.
_MUCH = 0.5


# Models whose tokens attend both ways: what stands before a text inside of a context would tell it nothing.
_ENCODERS = {
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "esm", "modernbert", "mpnet", "nomic_bert", "roberta",
    "xlm-roberta",
}  # fmt: skip


# Those of them whose blocks begin with the norm, as those of decoders do; behind the others TransformerLens calls the stream normalized.
_NORM_IN_FRONT = {"esm", "modernbert"}
# Values of a tensor that tell its model from others.
_SAMPLE = 64
# Tokens of the context by which streams are looked at beforehand.
_FEW = 8


class Harvested(NamedTuple):
    """What `sae.harvest` has made, those before it included."""

    rows: int
    """Rows in each layer's folder that are committed."""
    contexts: int
    """Contexts that they are of."""
    is_finished: bool
    """Whether the manifests are written; not yet while other workers have parts to do."""


class _Enough(BaseException):
    """Ends a forward pass behind the last layer that is needed. No Exception: a model may catch those."""


class _Taps:
    """Hooks that keep the residual streams after some blocks, and leave the rest of the model out unless it `is_whole`."""

    def __init__(self, model: Any, blocks: Any, layers: Sequence[int], is_whole: bool = False) -> None:
        self._model = model
        self.streams: dict[int, Any] = {}
        self.output: Any = None
        self._handles = []
        last = None if is_whole else max(layers)
        for layer in layers:
            if layer == 0:
                self._handles.append(blocks[0].register_forward_pre_hook(self._before(last == 0), with_kwargs=True))
            else:
                self._handles.append(blocks[layer - 1].register_forward_hook(self._behind(layer, layer == last)))
        self._layers = list(layers)

    def _before(self, is_last: bool) -> Any:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.streams[0] = args[0] if args else kwargs["hidden_states"]
            if is_last:
                raise _Enough

        return hook

    def _behind(self, layer: int, is_last: bool) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            self.streams[layer] = output[0] if isinstance(output, tuple) else output
            if is_last:
                raise _Enough

        return hook

    def run(self, **inputs: Any) -> dict[int, Any]:
        """The streams `[batch, seq, D]` of a forward pass, by layer.

        Raises:
            ValueError: when they have another shape.
        """
        self.streams.clear()
        if "use_cache" in inspect.signature(self._model.forward).parameters:
            inputs["use_cache"] = False
        with contextlib.suppress(_Enough):
            self.output = self._model(**inputs)
        if sorted(self.streams) != sorted(self._layers):
            raise RuntimeError("the model does not go through its blocks: name their list with blocks=")
        for layer, stream in self.streams.items():
            shape = list(getattr(stream, "shape", []))
            if len(shape) != 3 or shape[:2] != list(inputs["input_ids"].shape):
                kind = type(self._model).__name__
                raise ValueError(f"layer {layer} of {kind} is {shape or type(stream).__name__} where [batch, seq, D] is needed: it cannot be harvested")
        return dict(self.streams)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _blocks_of(model: Any) -> Any:
    """The list of a model's blocks: the outermost that is as long as the config says."""
    import torch

    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    count = getattr(config, "num_hidden_layers", None)
    found = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    outermost = [module for depth, module in found if depth == min(depth for depth, _ in found)]
    if len(outermost) != 1:
        raise ValueError(f"the model has {len(outermost)} lists of {count} blocks: name the one that is meant with blocks=")
    return outermost[0]


def _check_streams(model: Any, blocks: Any, layers: Sequence[int], is_found: bool, length: int) -> None:
    """Holds the streams of a few tokens to what `transformers` calls them, where `blocks` were found and not named.

    Raises:
        ValueError: where they are others: the blocks of some models take more than one stream, and some count them from behind the first block.
    """
    import torch

    # Behind the last block transformers gives the stream with the last norm.
    below = sorted({min(layer, len(blocks) - 1) for layer in layers})
    embedding = model.get_input_embeddings().weight
    tokens_bs = (torch.arange(length, device=embedding.device) % len(embedding))[None]
    is_known = is_found and any(of.__module__.startswith("transformers.") for of in type(model).__mro__)
    taps = _Taps(model, blocks, below, is_whole=is_known)
    asked = {"output_hidden_states": True} if is_known else {}
    try:
        with torch.inference_mode():
            streams = taps.run(input_ids=tokens_bs, attention_mask=torch.ones_like(tokens_bs), **asked)
            # Those of an encoder with a decoder have other names.
            named = getattr(taps.output, "hidden_states", None) or []
            for layer, stream in streams.items() if named else []:
                said = named[layer].to(stream.device, torch.float32)
                if said.shape != stream.shape or not torch.allclose(stream.float(), said, rtol=1e-3, equal_nan=True):
                    raise ValueError(
                        f"the stream after {layer} blocks of {type(model).__name__} is not its hidden_states[{layer}]: name the blocks with blocks= "
                        "to take what comes out of them all the same"
                    )
    finally:
        taps.remove()


def harvest(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    layer: int | Sequence[int],
    out: str | os.PathLike[str],
    *,
    context: int = 128,
    bos: str = "auto",
    packed: bool = True,
    keep_first: bool = False,
    batch: int = 8,
    dtype: Any = "bf16",
    metadata: Mapping[str, Any] | None = None,
    blocks: Any = None,
    part_bytes: int = 64 << 20,
    worker: tuple[int, int] = (0, 1),
) -> Harvested:
    """Writes the residual stream of a language model over texts as shards, on whichever device the model lies.

    ```python
    model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16", device_map="cuda")
    sae.harvest(model, AutoTokenizer.from_pretrained(name), texts, layer=12, out="s3://bucket/layer12", context=512)
    ```

    Layer L is `hidden_states[L]` of `transformers`, the stream after L blocks and before the final norm, `blocks.{L-1}.hook_resid_post`
    elsewhere. Models whose streams are others (Mamba and RWKV count them from behind the first block) are refused by a look at a few tokens.
    The pass ends behind the last block that is needed. Rows carry `context_id`, `pos` (in the context, counted from 0), `doc_id`
    (the number of the text) and `token_id`; `_contexts/part-*.parquet` holds the tokens of every context.

    Rows are made in parts, each committed by a marker: called again with the same arguments after a crash, it makes what is missing and
    nothing twice. Other texts or another order of them, other weights and another tokenizer are refused. Several processes share the parts
    where each has its own `worker`, and nothing else; two of one number do the same work twice and harm nothing.

    Args:
        model: a causal LM or an encoder of `transformers`, or any model whose config has `num_hidden_layers`.
        tokenizer: its tokenizer.
        texts: strings, in an order that is always the same; an iterator will do. All of them are read, those of a finished harvest too.
        layer: one layer, or several: each has a folder `layer-L` below `out` then.
        out: a folder by its path or URL, empty or begun by this function.
        context: tokens that the model sees at once, special ones included.
        bos: `"auto"`: special tokens around contexts as the tokenizer adds them to a text; `"always"`: BOS (that of the tokenizer, else its [CLS], else that of the
            model's config) also where it adds nothing in front; `"never"`: none. Two BOS never stand beside each other.
        packed: contexts run on from one text to the next, with BOS between them where contexts have it; otherwise each is of one text, and the
            last of a text is shorter.
        keep_first: keep the rows of attention sinks: position 0, and BOS before later texts of a packed context. Their norms are up to 100 times
            those of others in later layers, and what is trained with them learns little else.
        batch: contexts in a forward pass. Shorter ones are padded on the right and masked; padding makes no rows.
        dtype: how rows are stored, as of `sae.ShardWriter`.
        metadata: what is said of the rows in the manifest beside what is known (model, hook, context length, tokenizer): the data set, say,
            as `{"dataset": "…"}`, which `sae export` reads.
        blocks: the `ModuleList` of the model's blocks, where it is not found, or where what comes out of them is meant whatever `hidden_states` are.
        part_bytes: bytes of a part's shard, about: as much is made again after a crash.
        worker: (w, W) makes the parts w, w + W, w + 2W, …

    Raises:
        ValueError: for arguments that are none, a folder that was begun with others, tokens that the model does not know, streams that are not
            finite, and models that have several at a time or call others by the number of the layer.
        DamagedError: (a ValueError) when a shard that was committed is gone or of another size. No manifest is written then.
        StoreError: when the store does not answer.
    """
    if not hasattr(model, "config"):
        raise ValueError(f"model is a {type(model).__name__}: a model of transformers is needed, such as AutoModelForCausalLM.from_pretrained makes")
    is_found = blocks is None
    blocks = _blocks_of(model) if blocks is None else blocks
    layers, worker = _checked_layers(layer, len(blocks)), _checked_worker(worker)
    context, batch, part_bytes = integer("context", context, 2), integer("batch", batch, 1), integer("part_bytes", part_bytes, 1)
    packed, keep_first = boolean("packed", packed), boolean("keep_first", keep_first)
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise ValueError(f"texts is a {type(texts).__name__}: strings one after the other are needed, such as a list of them")
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    layout = Layout(checked_width(int(config.hidden_size)), dtype_name(dtype))
    special = Special.of(tokenizer, bos, config)
    marks_texts = bool(special.before) and config.model_type not in _ENCODERS
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    form = Form(context, special, packed, marks_texts, keep_first, vocabulary)
    form.check()
    rows_each = context - (0 if keep_first else 1)
    in_part = max(part_bytes // (layout.width * SIZES[layout.dtype] * rows_each), 1)
    folders = {of: "" if len(layers) == 1 else f"layer-{of}" for of in layers}
    sources = {folder: _source(model, tokenizer, of, form, metadata) for of, folder in folders.items()}
    plan = {
        "command": "harvest",
        "version": 4,
        "weights": _weights_hash(model),
        "vocabulary": _vocabulary_hash(tokenizer),
        "folders": list(folders.values()),
        "width": layout.width,
        "dtype": layout.dtype,
        "contexts_in_part": in_part,
        "batch": batch,
        "before": special.before,
        "behind": special.behind,
        "sources": sources,
    }
    with _evaluating(model):
        _check_streams(model, blocks, layers, is_found, min(_FEW, context))
    parts = Parts(Store.of(out), plan)
    # A tokenizer may pad with a token that was added behind the model's own. Padding is masked, so any other will do.
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    job = _Job(parts, _Taps(model, blocks, layers), folders, layout, form, batch, padding if padding < vocabulary else 0)
    try:
        with _evaluating(model):
            count = _make_parts(job, tokenizer, texts, in_part, worker)
    finally:
        job.taps.remove()
    done = parts.renew()
    is_finished = count > 0 and all(part in done for part in range(count))
    if is_finished:
        parts.finish(count, layout, sources)
    elif count == 0:
        raise ValueError("the texts hold no tokens")
    rows = sum(marker.rows for marker in done.values())
    return Harvested(rows, sum(int(marker.note.get("contexts", 0)) for marker in done.values()), is_finished)


def _checked_layers(layer: Any, blocks: int) -> list[int]:
    some = list(layer) if isinstance(layer, (Sequence, np.ndarray)) and not isinstance(layer, (str, bytes)) and np.ndim(layer) else [layer]
    try:
        layers = [integer("layer", of, 0, blocks) for of in some]
    except ValueError:
        layers = []
    if not layers or len({*layers}) != len(layers):
        raise ValueError(f"layer {layer!r}: the model has layers 0 (embeddings) to {blocks}: name one, or several in a list, each once")
    return layers


def _checked_worker(worker: Any) -> tuple[int, int]:
    try:
        index, count = worker
        count = integer("W", count, 1)
        return integer("w", index, 0, count - 1), count
    except (TypeError, ValueError) as error:
        raise ValueError(f"worker {worker!r}: (w, W) is needed, whole numbers with w below W") from error


def _weights_hash(model: Any) -> str:
    """A hash that tells a model's weights from those of any other training, though it is not over all of them: of names, formats, shapes and
    some values of each tensor."""
    import torch

    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Weights that lie on a disk, and some that are packed, show no values.
        with contextlib.suppress(RuntimeError, NotImplementedError, TypeError):
            flat = tensor.detach().reshape(-1)
            some = flat[:: max(len(flat) // _SAMPLE, 1)][:_SAMPLE]
            digest.update(some.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _vocabulary_hash(tokenizer: Any) -> str | None:
    """A hash of all that a tokenizer does, where it is one of the `tokenizers` library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # Calls leave their truncation and padding behind; here there is none.
    content = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _hook(model_type: str, layer: int) -> str:
    """The hook by which TransformerLens knows a layer's stream, as in loader/harvest/src/model.rs."""
    if model_type not in _ENCODERS:
        # What goes into the first block: its hook_embed lacks learned positions.
        return f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
    if layer == 0:
        return "hook_full_embed"
    # Behind the norm, which is in the block.
    return f"blocks.{layer - 1}.hook_{'' if model_type in _NORM_IN_FRONT else 'normalized_'}resid_post"


def _source(
    model: Any, tokenizer: Any, layer: int, form: Form, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the manifest says of the rows."""
    config = model.config
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = {
        "tool": "sae.harvest",
        "model": getattr(config, "_name_or_path", "") or type(model).__name__,
        "model_class": type(model).__name__,
        "revision": getattr(config, "_commit_hash", None),
        "layer": layer,
        "hook_name": _hook(text_config.model_type, layer),
        "context_size": form.length,
        "packed": form.packed,
        "prepend_bos": bool(form.special.before),
        "keep_first": form.keep_first,
        "tokenizer": getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
    }
    return checked_source({name: value for name, value in known.items() if value is not None} | dict(metadata or {}))


def _make_parts(job: _Job, tokenizer: Any, texts: Iterable[str], in_part: int, worker: tuple[int, int]) -> int:
    """Makes the parts of a worker that are missing. Returns how many there are in all. Texts of the leading parts that are there are passed over without
    being tokenised.

    Raises:
        ValueError: when the texts are not those of the parts that are there.
    """
    leading, notes = job.parts.leading(), {part: marker.note for part, marker in job.parts.markers.items()}
    part, start = len(leading), (int(leading[-1].note["text"]), int(leading[-1].note["offset"])) if leading else (0, 0)
    known = {int(note["through"]): str(note["texts"]) for note in notes.values()}
    read = Texts(texts, known, start[0])
    held: list[Context] = []
    for context, is_last in with_last(contexts(tokenizer, read, job.form, start)):
        if notes.get(part - 1, {}).get("last"):
            read.refuse_more(context.docs[0])
        held.append(context)
        if len(held) == in_part or is_last:
            through = context.docs[-1]
            texts_hash = read.hash_through(through)
            if part in notes and (notes[part]["through"], notes[part]["last"]) != (through, is_last):
                read.refuse_others(through)
            if part % worker[1] == worker[0] and part not in notes:
                note = {"text": context.text, "offset": context.offset, "through": through, "texts": texts_hash, "last": is_last}
                job.make(part, held, part * in_part, note)
            held, part = [], part + 1
    return part


class _Job:
    """What making parts takes."""

    def __init__(
        self, parts: Parts, taps: _Taps, folders: dict[int, str], layout: Layout, form: Form, batch: int, padding: int
    ) -> None:
        self.parts, self.taps, self.form = parts, taps, form
        self._folders, self._layout, self._batch, self._padding = folders, layout, batch, padding
        self._types = {name: KNOWN[name] for name in ("context_id", "pos", "doc_id", "token_id")}
        self._has_looked = False

    def make(self, part: int, some: list[Context], first: int, note: dict[str, Any]) -> None:
        """Makes a part of these contexts and commits it; `first` is the id of the first, `note` what is remembered of it."""
        began = time.monotonic()
        name = shard_name(part)
        shards = {layer: Buffered(self.parts.store.below(folder), name, self._layout, self._types) for layer, folder in self._folders.items()}
        try:
            for at in range(0, len(some), self._batch):
                self._forward(some[at : at + self._batch], first + at, shards)
            self.parts.store.put(f"_contexts/part-{part:06}.parquet", _contexts_file(some, first))
            entries = {self._folders[layer]: shard.finish() for layer, shard in shards.items()}
        except BaseException:
            for shard in shards.values():
                shard.abort()
            raise
        self.parts.commit(part, Marker(entries, note | {"contexts": len(some)}))
        tokens = sum(len(context.tokens) for context in some)
        seconds = time.monotonic() - began
        _LOG.info("part %d: %d contexts, %d tokens, %.0f tokens/s", part, len(some), tokens, tokens / seconds)

    def _forward(self, some: list[Context], first: int, shards: dict[int, Buffered]) -> None:
        import torch

        longest = max(len(context.tokens) for context in some)
        tokens_bs = np.full((len(some), longest), self._padding, np.int64)
        docs_bs = np.zeros((len(some), longest), np.int64)
        mask_bs, kept_bs = np.zeros((len(some), longest), bool), np.zeros((len(some), longest), bool)
        for row, context in enumerate(some):
            count = len(context.tokens)
            tokens_bs[row, :count], docs_bs[row, :count], mask_bs[row, :count] = context.tokens, context.docs, True
            kept_bs[row, :count] = self.form.keeps(context.tokens)
        model = self.taps._model
        device = model.get_input_embeddings().weight.device
        inputs = {"input_ids": torch.from_numpy(tokens_bs).to(device), "attention_mask": torch.from_numpy(mask_bs).to(device, torch.int64)}
        with torch.inference_mode():
            streams = self.taps.run(**inputs)
        batch_of, pos = np.nonzero(kept_bs)
        given = {"context_id": batch_of + first, "pos": pos, "doc_id": docs_bs[kept_bs], "token_id": tokens_bs[kept_bs]}
        columns = arrays(given, self._types)
        for layer, stream in streams.items():
            with torch.inference_mode():
                rows = stream[torch.from_numpy(kept_bs).to(stream.device)]
                self._look_once(rows, layer)
            try:
                bits = stored(rows, self._layout.width, self._layout.dtype)
            except ValueError as error:
                raise ValueError(f"layer {layer}, contexts from {first} on: {error}") from error
            shards[layer].write(bits, columns)

    def _look_once(self, rows: Any, layer: int) -> None:
        """Says of the first rows what share of E‖x‖² the largest carry."""
        if self._has_looked or len(rows) == 0:
            return
        self._has_looked = layer == max(self._folders)
        squares = rows.float().square().sum(dim=1).sort(descending=True).values
        top = max(len(squares) // 100, 1)
        share = float(squares[:top].sum() / squares.sum().clamp_min(1e-30))
        said = f"layer {layer}: the largest {top} of the first {len(squares)} rows carry {share:.1%} of their squared norms"
        if share > _MUCH and len(squares) >= 100:
            _LOG.warning("%s: a dictionary would learn little else; leave them out by data.filter", said)
        else:
            _LOG.info("%s", said)


def _contexts_file(some: list[Context], first: int) -> bytes:
    table = pa.Table.from_arrays(
        [
            pa.array(range(first, first + len(some)), pa.uint64()),
            pa.array([context.docs[0] for context in some], pa.int64()),
            pa.array([context.tokens for context in some], _CONTEXTS.field("token_ids").type),
        ],
        schema=_CONTEXTS,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
