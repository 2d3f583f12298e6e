"""The Python side of tests/tests/harvest.rs: models as transformers makes them, texts, and what transformers computes of the same tokens.

    harvest.py models DIR                    tiny models of each class, with tokenizers
    harvest.py framed DIR                    tokenizers that put something around a text or do not, and say so or say the opposite
    harvest.py text FILE BYTES               mixed text as JSON lines, the same every time
    harvest.py quantised DIR                 a GGUF file with every type of numbers
    harvest.py shrink GGUF OUT [PRE]         a model of a few numbers with the tokenizer of a GGUF file, which cuts texts by the rule PRE
    harvest.py sentencepiece OUT             the same with a tokenizer of the kind "llama"
    harvest.py compare MODEL OUT LAYERS …    rows of OUT beside the streams of the model
    harvest.py tokens MODEL TEXT OUT …       tokens of OUT beside those of the model's tokenizer
    harvest.py auto MODEL TEXT OUT …         the same with what the tokenizer puts around a text

MODEL is a folder or a .gguf file, LAYERS are numbers between commas. `compare`, `tokens` and `auto` take any number of such triples, and print a list
with a JSON object for each."""

import json
import os
import random
import shutil
import sys

import numpy

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def mixed_text(size):
    """Documents of several scripts, code, emoji and odd whitespace, in random proportions."""
    source = random.Random(7)
    syllables = ["ka", "lo", "min", "ter", "sch", "ou", "the", "ing", "er", "qu", "zy", "ph", "str", "ea", "ion", "un", "re"]
    ranges = [(0x0410, 0x044F), (0x0391, 0x03C9), (0x05D0, 0x05EA), (0x0621, 0x064A), (0x0905, 0x0939), (0x3041, 0x3096), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)]
    code = ["def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n", "SELECT * FROM t WHERE a >= 10.5;\n", "{\"key\": [1, 2.5e-3, null]}\n", "x_1 = y' + z''; // it's\n"]
    odd = ["  ", "\t", "\n\n\n", "\r\n", " \n ", "\u00a0", "\u2003", "\u200b", "   \t\n"]
    emoji = ["🙂", "👩‍👩‍👧", "🇫🇷", "❤️", "e\u0301", "Å", "ﬁ", "…", "—", "½", "٣", "१२", "x²"]

    def word():
        kind = source.random()
        if kind < 0.45:
            text = "".join(source.choice(syllables) for _ in range(source.randint(1, 4)))
            return source.choice([text, text.capitalize(), text.upper()]) + source.choice(["", "", "", ",", ".", "'s", "'LL", "!?"])
        if kind < 0.6:
            low, high = source.choice(ranges)
            return "".join(chr(source.randint(low, high)) for _ in range(source.randint(1, 6)))
        if kind < 0.7:
            return str(source.randint(0, 10 ** source.randint(1, 9)))
        if kind < 0.78:
            return source.choice(code)
        if kind < 0.86:
            return source.choice(odd)
        if kind < 0.94:
            return source.choice(emoji)
        return "".join(chr(source.randint(0x20, 0x7E)) for _ in range(source.randint(1, 12)))

    written = 0
    while written < size:
        document = source.choice(["", " ", "\n"]) + source.choice([" ", " ", ""]).join(word() for _ in range(source.randint(1, 400)))
        written += len(document.encode())
        yield document


def text(path, size):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for document in mixed_text(int(size)):
            out.write(json.dumps({"text": document}) + "\n")


def trained_tokenizer(frame):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(mixed_text(200_000), trainer)
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def models(folder):
    import torch
    import transformers

    torch.manual_seed(0)
    # Norms and gates that matter: the usual first weights make every block next to nothing.
    shape = dict(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, initializer_range=0.15)
    decoder = dict(shape, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=1)
    scaled = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    made = {
        "llama": (transformers.LlamaConfig(**decoder, rope_parameters=scaled, attention_bias=True, mlp_bias=True), torch.float32, "<s> $A"),
        "mistral": (transformers.MistralConfig(**decoder, head_dim=24, sliding_window=64), torch.bfloat16, "<s> $A"),
        "qwen2": (transformers.Qwen2Config(**decoder, rope_parameters=dict(rope_type="linear", rope_theta=1e6, factor=2.0)), torch.float16, None),
        "qwen3": (transformers.Qwen3Config(**decoder, head_dim=32), torch.float32, None),
        "bert": (transformers.BertConfig(**shape, max_position_embeddings=128), torch.float32, "<s> $A </s>"),
    }
    for name, (config, dtype, frame) in made.items():
        model = transformers.AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        path = os.path.join(folder, name)
        # Several files and an index for one of them.
        model.to(dtype).save_pretrained(path, max_shard_size="100KB" if name == "qwen2" else "5GB")
        trained_tokenizer(frame).save(os.path.join(path, "tokenizer.json"))
        with open(os.path.join(path, "tokenizer_config.json"), "w") as out:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}, out)


    # As checkpoints that came from TensorFlow name their norms.
    from safetensors.numpy import load_file, save_file

    old = os.path.join(folder, "bert-old")
    shutil.copytree(os.path.join(folder, "bert"), old)
    weights = load_file(os.path.join(old, "model.safetensors"))
    ends = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def renamed(name):
        return next((name.removesuffix(new) + end for new, end in ends.items() if name.endswith(new)), name)

    save_file({renamed(name): value for name, value in weights.items()}, os.path.join(old, "model.safetensors"))


def framed(folder):
    """Tokenizers with every frame around a text, and every pair of flags beside it."""
    import itertools

    for (at, frame), begins, ends in itertools.product(enumerate([None, "<s> $A", "$A </s>", "<s> $A </s>"]), [None, False, True], [None, False, True]):
        path = os.path.join(folder, f"framed-{at}-{begins}-{ends}")
        os.makedirs(path)
        trained_tokenizer(frame).save(os.path.join(path, "tokenizer.json"))
        flags = {name: value for name, value in [("add_bos_token", begins), ("add_eos_token", ends)] if value is not None}
        with open(os.path.join(path, "tokenizer_config.json"), "w") as out:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **flags}, out)


def copy_tokenizer(writer, fields, pre):
    import gguf

    for name, field in fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = pre if pre and name == "tokenizer.ggml.pre" else field.contents()
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind)


def tiny_gguf(out, architecture, width, hidden, blocks, vocabulary, tokenizer, tensor, divisors=None):
    """Writes a model whose matrices `tensor(name, rows, columns)` gives, as (array, type) or an array of f32; `divisors` are those of rotary angles."""
    import gguf

    writer = gguf.GGUFWriter(out, architecture)
    heads = 4
    writer.add_block_count(blocks)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // heads)
    tokenizer(writer)

    def add(name, rows, columns):
        made = tensor(name, rows, columns)
        array, kind = made if isinstance(made, tuple) else (made, None)
        writer.add_tensor(name, array, raw_dtype=kind)

    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(numpy.float32))
    add("token_embd.weight", vocabulary, width)
    for block in range(blocks):
        for name, rows, columns in [("attn_q", width, width), ("attn_k", width // 2, width), ("attn_v", width // 2, width), ("attn_output", width, width), ("ffn_gate", hidden, width), ("ffn_up", hidden, width), ("ffn_down", width, hidden)]:
            add(f"blk.{block}.{name}.weight", rows, columns)
        for name in ["attn_norm", "ffn_norm"]:
            writer.add_tensor(f"blk.{block}.{name}.weight", (1 + 0.1 * numpy.random.default_rng(block).standard_normal(width)).astype(numpy.float32))
    writer.add_tensor("output_norm.weight", numpy.ones(width, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain_tokenizer(writer):
    """Bytes, and one pair of them."""
    from tokenizers import pre_tokenizers

    tokens = ["<s>", "</s>"] + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["ka"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 257)
    writer.add_token_merges(["k a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def quantised(folder):
    import gguf
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as Kind

    kinds = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
    # Where a block of a type has its scales, as f16.
    scales = {Kind.Q4_0: [0], Kind.Q4_1: [0, 2], Kind.Q5_0: [0], Kind.Q5_1: [0, 2], Kind.Q8_0: [0], Kind.Q2_K: [80, 82], Kind.Q3_K: [108], Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q6_K: [208]}
    random_numbers = numpy.random.default_rng(3)
    used, at = {}, iter(range(10**6))

    def tensor(name, rows, columns):
        kind = kinds[next(at) % len(kinds)]
        used[name] = kind.name
        if kind in (Kind.F32, Kind.F16):
            return (0.05 * random_numbers.standard_normal((rows, columns))).astype(numpy.float32 if kind == Kind.F32 else numpy.float16)
        if kind == Kind.BF16:
            numbers = (0.05 * random_numbers.standard_normal((rows, columns))).astype(numpy.float32)
            return (numbers.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8).reshape(rows, 2 * columns), kind
        block, size = GGML_QUANT_SIZES[kind]
        # Any bytes are some numbers: only the scales have to be of a bearable size.
        stored = random_numbers.integers(0, 256, (rows * columns // block, size), dtype=numpy.uint8)
        for offset in scales[kind]:
            numbers = random_numbers.uniform(0.0001, 0.0006, len(stored)).astype(numpy.float16)
            stored[:, offset : offset + 2] = numbers.view(numpy.uint8).reshape(-1, 2)
        return stored.reshape(rows, -1), kind

    tiny_gguf(os.path.join(folder, "quantised.gguf"), "llama", 256, 512, 4, 259, plain_tokenizer, tensor)
    assert {kind.name for kind in kinds} == set(used.values()), used
    # As converters write them for Llama 3.1: fast pairs stay, slow ones are eight times slower.
    tiny_gguf(os.path.join(folder, "divided.gguf"), "llama", 64, 96, 4, 259, plain_tokenizer, tiny_tensor, numpy.linspace(1, 8, 8))
    print(json.dumps(used))


def tiny_tensor(name, rows, columns):
    return (0.2 * numpy.random.default_rng(len(name)).standard_normal((rows, columns))).astype(numpy.float32)


def shrink(source, out, pre=None):
    import gguf

    fields = gguf.GGUFReader(source).fields
    tokens = len(fields["tokenizer.ggml.tokens"].contents())
    tiny_gguf(out, "llama", 16, 32, 1, tokens, lambda writer: copy_tokenizer(writer, fields, pre), tiny_tensor)


def sentencepiece(out):
    """A SentencePiece model of pairs with bytes for what it does not know, trained here; it stays beside the file, as the judge of it."""
    import sentencepiece as library

    with open(out + ".txt", "w", encoding="utf-8") as lines:
        lines.writelines(" ".join(document.split()) + "\n" for document in mixed_text(200_000))
    library.SentencePieceTrainer.train(
        input=out + ".txt", model_prefix=out, vocab_size=2500, model_type="bpe", byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    trained = library.SentencePieceProcessor(model_file=out + ".model")
    ids = range(trained.vocab_size())

    def tokenizer(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([trained.id_to_piece(id) for id in ids])
        writer.add_token_scores([trained.get_score(id) for id in ids])
        writer.add_token_types([2 if trained.is_unknown(id) else 3 if trained.is_control(id) else 6 if trained.is_byte(id) else 1 for id in ids])
        writer.add_unk_token_id(trained.unk_id())
        writer.add_bos_token_id(trained.bos_id())
        writer.add_eos_token_id(trained.eos_id())

    tiny_gguf(out, "llama", 16, 32, 1, trained.vocab_size(), tokenizer, tiny_tensor)


def python_tokenizer(model):
    """A function from a text to its tokens, with nothing around them."""
    if os.path.exists(model + ".model"):
        import sentencepiece as library

        return library.SentencePieceProcessor(model_file=model + ".model").encode
    import transformers
    from tokenizers import normalizers, pre_tokenizers

    path, file = place(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **file)
    if file:
        import gguf

        # Of GGUF files transformers 5.23 knows some rules for cutting, and takes GPT-2's for SmolLM2's, which cuts digits apart before: its
        # own tokenizer.json has this sequence. And it leaves out that Qwen2's composes letters first.
        cut = gguf.GGUFReader(model).fields["tokenizer.ggml.pre"].contents()
        if cut == "smollm":
            digits, pairs = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pairs])
            assert tokenizer("The", add_special_tokens=False)["input_ids"] == [504]
        if cut == "qwen2":
            tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def place(model):
    """A model's folder, and the GGUF file in it if it is one."""
    return (os.path.dirname(model), dict(gguf_file=os.path.basename(model))) if model.endswith(".gguf") else (model, {})


def rows_of(folder):
    """All Parquet files of a folder as one table."""
    import pyarrow.dataset

    return pyarrow.dataset.dataset(sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".parquet"))).to_table()


def numbers(table):
    """The rows of a shard's table as f32."""
    field = table.schema.field("activation")
    dtype = field.metadata[b"sae.dtype"].decode()
    stored = table.column("activation").combine_chunks()
    raw = numpy.frombuffer(b"".join(value.as_py() for value in stored), numpy.uint8).reshape(len(stored), -1)
    if dtype == "f32":
        return raw.view(numpy.float32)
    if dtype == "f16":
        return raw.view(numpy.float16).astype(numpy.float32)
    return (raw.view(numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)


def contexts_of(out):
    table = rows_of(os.path.join(out, "_contexts"))
    return dict(zip(table.column("context_id").to_pylist(), table.column("token_ids").to_pylist(), strict=True))


def compare(model, out, layers):
    import torch
    import transformers

    path, file = place(model)
    network = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, **file).eval()
    if file:
        import gguf

        # transformers 5.23 passes these over.
        divisors = [tensor.data for tensor in gguf.GGUFReader(model).tensors if tensor.name == "rope_freqs.weight"]
        for of in divisors:
            network.rotary_emb.inv_freq /= torch.from_numpy(of.copy())
    streams = {}
    stack = network.encoder.layer if hasattr(network, "encoder") else network.layers

    def keep(layer):
        return lambda _module, _inputs, output: streams.__setitem__(layer, output[0] if isinstance(output, tuple) else output)

    (network.embeddings if hasattr(network, "encoder") else network.embed_tokens).register_forward_hook(keep(0))
    for at, block in enumerate(stack):
        block.register_forward_hook(keep(at + 1))
    layers = [int(layer) for layer in layers.split(",")]
    tables = {layer: rows_of(out if len(layers) == 1 else os.path.join(out, f"layer-{layer}")) for layer in layers}
    found = {"rows": 0, "worst": {}, "contexts": 0}
    rows = {layer: numbers(table) for layer, table in tables.items()}
    first = next(iter(tables.values()))
    ids, positions, tokens = (first.column(name).to_numpy() for name in ("context_id", "pos", "token_id"))
    for context, token_ids in contexts_of(out).items():
        with torch.no_grad():
            states = network(input_ids=torch.tensor([token_ids]), output_hidden_states=True).hidden_states
        own = numpy.flatnonzero(ids == context)
        assert (tokens[own] == numpy.array(token_ids)[positions[own]]).all(), "token_id"
        found["contexts"] += 1
        found["rows"] += len(own)
        for layer in layers:
            expected = streams[layer].reshape(-1, streams[layer].shape[-1])
            if layer < len(stack):
                assert torch.equal(expected, states[layer][0]), f"hidden_states[{layer}] is not what the block gave"
            expected = expected.numpy()[positions[own]]
            error = numpy.linalg.norm(rows[layer][own] - expected, axis=1) / numpy.linalg.norm(expected, axis=1)
            found["worst"][str(layer)] = max(found["worst"].get(str(layer), 0.0), float(error.max(initial=0.0)))
    return found


def framed_tokens(model, source, out):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    return tokens(model, source, out, lambda text: tokenizer(text)["input_ids"])


def tokens(model, source, out, encode=None):
    encode = encode or python_tokenizer(model)
    table = rows_of(os.path.join(out, "_contexts")).sort_by("context_id")
    ours = {}
    for document, ids in zip(table.column("doc_id").to_pylist(), table.column("token_ids").to_pylist(), strict=True):
        ours.setdefault(document, []).extend(ids)
    count = 0
    with open(source, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            document = json.loads(line)["text"]
            expected, got = encode(document), ours.get(number, [])
            if got != expected:
                at = next((at for at, (a, b) in enumerate(zip(got, expected)) if a != b), min(len(got), len(expected)))
                sys.exit(f"document {number}, token {at}: {got[at:at + 8]}, and Python has {expected[at:at + 8]} of {document[:200]!r}")
            count += len(expected)
    return {"tokens": count}


if __name__ == "__main__":
    def triples(of):
        return lambda *words: print(json.dumps([of(*words[at : at + 3]) for at in range(0, len(words), 3)]))

    {"models": models, "framed": framed, "auto": triples(framed_tokens), "text": text, "quantised": quantised, "shrink": shrink, "sentencepiece": sentencepiece, "compare": triples(compare), "tokens": triples(tokens)}[sys.argv[1]](*sys.argv[2:])
