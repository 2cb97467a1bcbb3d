"""Makes the fixtures beside this file: tokenizers, and what Hugging Face tokenizers and
SentencePiece do with them.

Usage: make_testdata.py TEXT_FILE   (needs the Python packages tokenizers and sentencepiece)
"""

import io
import json
import os
import random
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "a",
    "Hello, world!",
    " leading space",
    "   three leading, three trailing   ",
    "tabs\tand\t\ttabs\r\nCRLF\r\n\r\nend\n",
    "a" + " " * 70 + "b" + "\n" * 9 + " \n \n",
    "I've you're WE'LL it'S don't 'tis o'clock 'ſ",
    "1 12 123 1234 12345 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ 1e-9",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # 100%\n\tpass\n",
    "https://example.org/a_b?c=d&e=%20#frag <b>bold</b> a@b.c",
    "中文字符，日本語のテキスト。한국어 텍스트도 있다",
    "العربية مع تشكيل: مُحَمَّد",
    "हिन्दी में लिखा हुआ क्षेत्र",
    "Русский текст, Ελληνικά, עברית, ไทยภาษา",
    "café cafe\u0301 naïve ﬁne Å Å ①②",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️",
    "e\u0301\u0302\u0303 Z̸̡a̵l̴g̷o̶",
    "nul\x00inside \x01\x02\x1b[0m\x7f\x80\x85\xa0\u00ad\u200b\u200d\u2028\u2029\ufeff\ufffd",
    "spaces: \u00a0\u1680\u2003\u202f\u205f\u3000\u180e|",
    "highest \U0010ffff \U000e0001 private \ue000 not a character \ufffe",
    "<s>Hello</s> world <s> <unk><pad></s>",
    "a<mask>b a <mask> b  <mask>  <mask>",
    "<0x0A><0x41> literal byte tokens <0xFF>",
    "▁already▁marked▁ ▁ text▁",
    "Ġ Ċ byte alphabet Ģ ÿ",
    "[WORD] x[WORD] [WORD]y é[WORD] _[WORD]_ ([WORD])",
    "NORM norm Norm  NORM",
    "\\ud800 surrogate-like &#xD800; %ED%A0%80",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===///\\\\\\\"\"\"'''```~~~",
    "Mixed中英文text混在123数字！emoji😀中",
]

# Fragments of random texts.
FRAGMENTS = [
    " ", " ", "  ", "\n", "\r\n", "\t", "the", "The", " and", "ing", "'s", "'LL", "1", "23", "456",
    ".", ",", "!", "(", ")", "_", "-", "é", "e\u0301", "ß", "İ", "中", "文", "日本", "한", "ع", "क्ष",
    "😀", "👨‍👩‍👧", "\u200d", "\u00a0", "\u3000", "\u2028", "\x00", "\x1c", "\x85", "▁", "Ġ", "<s>",
    "</s>", "<unk>", "<mask>", "[WORD]", "NORM", "norm", "<0x41>", "½", "²", "Ⅷ", "٣", "\U0010ffff",
    "\ufffd", "ﬁ", "x", "zq",
]


def random_text(rng):
    if rng.random() < 0.15:
        ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0xFFF), (0x2000, 0x2BFF),
                  (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF)]
        return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 12)))
    return "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 14)))


def token(content, **options):
    return AddedToken(content, **options)


def specials():
    return [token(t, special=True, normalized=False) for t in ("<s>", "<pad>", "</s>", "<unk>")]


def lines(path):
    with open(path, newline="") as f:
        return f.read().splitlines(keepends=True)[:600]


def train_byte_level(path, pre_tokenizer, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(lines(path), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials(), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def train_byte_fallback(path):
    """LLaMA-2's kind: <unk>, <s>, </s>, 256 bytes, merges, characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    byte_tokens = [token(f"<0x{i:02X}>", special=True, normalized=False) for i in range(256)]
    tokenizer.train_from_iterator(lines(path), trainers.BpeTrainer(
        vocab_size=850, show_progress=False,
        special_tokens=[token(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
        + byte_tokens))
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], model["merges"]
    for piece in ("▁▁", "▁▁▁▁"):  # runs of blanks, as LLaMA-2 has them
        half = piece[: len(piece) // 2]
        vocab[piece] = len(vocab)
        merges.append([half, half])
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(m) for m in merges], unk_token="<unk>",
                                     fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(
        [token(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = template("<s>", 1)
    tokenizer.decoder = llama_decoder()
    return tokenizer


def template(bos, bos_id):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                         special_tokens=[(bos, bos_id)])


def llama_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                              decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def variants_of_byte_level():
    """Name, and a function that changes a copy of gpt2.json."""

    def plain(_):
        pass

    def opt_like(t):
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        t.add_special_tokens([token("<mask>", special=True, normalized=False, lstrip=True)])

    def added_tokens(t):
        t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        t.add_tokens([token("NORM", normalized=True),
                      token("[WORD]", single_word=True, normalized=False),
                      token("<mask>", rstrip=True, lstrip=True, normalized=False),
                      token("ing a", normalized=True, single_word=True),
                      token("é", normalized=False),
                      token("  ", normalized=False)])

    def strip(t):
        t.normalizer = normalizers.Sequence(
            [normalizers.Strip(), normalizers.NFD(), normalizers.Replace(Regex(r"\s+"), " "),
             normalizers.Replace("the", "THE")])

    def digits(t):
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.normalizer = normalizers.NFKD()

    def whitespace(t):
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Whitespace(), pre_tokenizers.Split("e", "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)])

    def whitespace_split(t):
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(), pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False)])

    def bert_processing(t):
        t.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False),
             processors.BertProcessing(("</s>", 2), ("<s>", 0)),
             template("<pad>", 1)])

    def no_decoder(t):
        t.decoder = None

    def removed_decoder(t):
        t.decoder = decoders.Sequence([decoders.ByteLevel(),
                                       decoders.Replace(Regex(r"[aeiou]+"), "_"),
                                       decoders.Strip("T", 1, 0)])

    changes = [plain, opt_like, added_tokens, strip, digits, whitespace, whitespace_split,
               bert_processing, no_decoder, removed_decoder]
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next",
                     "contiguous"):
        for invert in (False, True):
            def split(t, behavior=behavior, invert=invert):
                t.pre_tokenizer = pre_tokenizers.Sequence([
                    pre_tokenizers.Split(Regex(r"[aeiou]|\d+|\w(?=\.)|\h\b|\s"), behavior, invert),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
            split.__name__ = f"split_{behavior}{'_inverted' if invert else ''}"
            changes.append(split)
    return [(change.__name__, change) for change in changes]


def variants_of_llama3():
    def plain(_):
        pass

    def qwen2(t):
        t.normalizer = normalizers.NFC()
        t.model.ignore_merges = False

    def gpt4o(t):
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(GPT4O_PATTERN), "isolated"),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return [("plain", plain), ("qwen2", qwen2), ("gpt4o", gpt4o)]


def variants_of_llama2():
    def legacy(t):
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                             normalizers.Replace(" ", "▁")])

    def metaspace(scheme, split):
        def change(t):
            t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        change.__name__ = f"metaspace_{scheme}{'_split' if split else ''}"
        return change

    def metaspace_decoder(t):
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        t.decoder = decoders.Metaspace(prepend_scheme="always")

    def metaspace_decoder_never(t):
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        t.decoder = decoders.Metaspace(prepend_scheme="never")

    def normalized_tokens(t):
        legacy(t)
        t.add_tokens([token("NORM", normalized=True),
                      token("<mask>", normalized=False, rstrip=True)])

    def unknown(t):
        legacy(t)
        t.model.byte_fallback = False

    def unknown_not_fused(t):
        unknown(t)
        t.model.fuse_unk = False

    def dropped(t):
        unknown(t)
        t.model.unk_token = None

    def split_first(t):
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(",", "isolated"),
             pre_tokenizers.Metaspace(prepend_scheme="first")])

    def replace_after_fuse(t):
        legacy(t)
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                       decoders.Fuse(), decoders.Replace("the", "T H E")])

    changes = [legacy]
    changes += [metaspace(s, b) for s in ("first", "always", "never") for b in (False, True)]
    changes += [metaspace_decoder, metaspace_decoder_never, normalized_tokens, unknown,
                unknown_not_fused, dropped, split_first, replace_after_fuse]
    return [(change.__name__, change) for change in changes]


def train_affixes(path):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##",
                                     end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(lines(path)[:60], trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials(), show_progress=False,
        continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    return tokenizer


def cases(tokenizer, rng, whole, with_decode):
    """encode: [text, ids, ids with special tokens];
    decode: [ids, text, text without special tokens]."""
    size = tokenizer.get_vocab_size()
    texts = TEXTS if whole else [""] + rng.sample(TEXTS, 9)
    texts = texts + [random_text(rng) for _ in range(12 if whole else 6)]
    encode = [[text, tokenizer.encode(text, add_special_tokens=False).ids,
               tokenizer.encode(text, add_special_tokens=True).ids] for text in texts]
    if not with_decode:
        return {"encode": encode, "decode": []}
    id_lists = [case[2] for case in encode]
    for _ in range(30):
        ids = [rng.randrange(size) for _ in range(rng.randint(1, 10))]
        if rng.random() < 0.5:  # many byte tokens
            ids = [rng.randrange(3, 262) if rng.random() < 0.7 else i for i in ids]
        id_lists.append(ids)
    # Version 0.23 decodes these to their normalised form, and never skips them; earlier ones did
    # not.
    changed = {i for i, t in tokenizer.get_added_tokens_decoder().items() if t.normalized}
    id_lists = [[i for i in ids if i not in changed] for ids in id_lists]
    decode = [[ids, tokenizer.decode(ids, skip_special_tokens=False),
               tokenizer.decode(ids, skip_special_tokens=True)] for ids in id_lists]
    return {"encode": encode, "decode": decode}


def patch_of(base, changed):
    """The members of `changed` that differ: of the model one by one, of the rest whole."""
    patch = {k: v for k, v in changed.items() if k != "model" and v != base.get(k)}
    model = {k: v for k, v in changed["model"].items() if v != base["model"].get(k)}
    return {"members": patch, "model": model}


def write(name, value):
    path = os.path.join(HERE, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))


def make_json_fixture(name, tokenizer, variants, merges_as_strings=False):
    rng = random.Random(name)
    base = json.loads(tokenizer.to_str())
    golden = []
    for variant, change in variants:
        copy = Tokenizer.from_str(json.dumps(base))
        change(copy)
        changed = json.loads(copy.to_str())
        first = not golden
        other_decoder = changed["decoder"] != base["decoder"] or "added_tokens" in variant
        golden.append({"name": variant, "patch": patch_of(base, changed),
                       **cases(Tokenizer.from_str(json.dumps(changed)), rng, first,
                               first or other_decoder)})
    if merges_as_strings:
        base["model"]["merges"] = [" ".join(m) for m in base["model"]["merges"]]
    write(f"{name}/tokenizer.json", base)
    write(f"{name}/golden.json", golden)


def make_sentencepiece_fixture(name, path, num_random=12, **options):
    rng = random.Random(name)
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    model_file = os.path.join(HERE, name, "tokenizer.model")
    written = io.BytesIO()  # given paths, the model would contain them
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.rstrip("\r\n") for line in lines(path)), model_writer=written,
        byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity",
        split_digits=True, minloglevel=2, max_sentence_length=100000, **options)
    with open(model_file, "wb") as f:
        f.write(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_file=model_file)
    encode, decode = [], []
    for text in TEXTS + [random_text(rng) for _ in range(num_random)]:
        ids = model.encode(text)
        encode.append([text, ids, [model.bos_id()] + ids])
        decode.append([ids, model.decode(ids)])
    for _ in range(4 * num_random):
        ids = [rng.randrange(260) if rng.random() < 0.6 else rng.randrange(model.vocab_size())
               for _ in range(rng.randint(1, 12))]
        decode.append([ids, model.decode(ids)])
    write(f"{name}/golden.json", {"encode": encode, "decode": decode})


def main():
    path = sys.argv[1]
    gpt2 = train_byte_level(path, pre_tokenizers.ByteLevel(add_prefix_space=False), 700)
    gpt2.post_processor = template("</s>", 2)
    make_json_fixture("gpt2", gpt2, variants_of_byte_level())
    llama3 = train_byte_level(path, pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), 700)
    # ignore_merges matters for tokens that no merges lead to.
    state = json.loads(llama3.to_str())
    for word in ("Ġquick", "Hello", "ä¸ŃæĸĩåŃĹç¬¦", "ĠĠĠĠĠĠĠ"):
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    state["model"]["ignore_merges"] = True
    llama3 = Tokenizer.from_str(json.dumps(state))
    llama3.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template("<s>", 0)])
    make_json_fixture("llama3", llama3, variants_of_llama3(), merges_as_strings=True)
    make_json_fixture("llama2", train_byte_fallback(path), variants_of_llama2())
    make_json_fixture("affixes", train_affixes(path), [("plain", lambda t: None)])
    make_sentencepiece_fixture("sentencepiece_bpe", path, vocab_size=700, model_type="bpe",
                               remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    make_sentencepiece_fixture("sentencepiece_unigram", path, vocab_size=500, model_type="unigram",
                               remove_extra_whitespaces=True)


if __name__ == "__main__":
    main()
