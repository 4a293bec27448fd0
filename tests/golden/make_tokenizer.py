"""Write tokenizer_smollm2.txt and tokenizer_stories260K.txt: texts and their token ids by independent tokenizers.

    python3 -m venv v && v/bin/pip install gguf==0.19.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
    v/bin/python make_tokenizer.py SmolLM2-135M-Instruct.Q4_1.gguf stories260K-F32.gguf

The first uses Hugging Face's tokenizers with the vocabulary and merges of the GGUF file and, for each
pre-tokenizer, the definition that the model family publishes in its tokenizer.json. The second uses
SentencePiece with a model made of the GGUF file's pieces and scores. A line is: pre-tokenizer, the
text in hex ("-" is empty), its ids.
"""

import random
import sys
from pathlib import Path

import sentencepiece
from gguf import GGUFReader
from sentencepiece import sentencepiece_model_pb2 as spm_pb2
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

HERE = Path(__file__).parent

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern):
    return Sequence([Split(Regex(pattern), behavior="isolated"),
                     ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {  # name: definition, ignore_merges
    "gpt-2": (ByteLevel(add_prefix_space=False), False),
    "smollm": (Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]), False),
    "llama-bpe": (split(LLAMA3), True),
    "qwen2": (split(QWEN2), False),
    "tekken": (split(TEKKEN), True),
}

TEXTS = [
    "", " ", "  ", "\n", "\n\n \n", "\t\r\n x", "a", " a", "a ", "   three leading, three trailing   ",
    "Hello, world!", "it's they're I'VE he'd'll 's 'S ''t I'Day we'SET o'Tool a'Me", "1", " 12", "1234567 12.5e-3", "a1b22c333",
    "x  1", "tab\t\t7", "  9  ", "(1)[2]{3}", "http://a.b/c?d=e&f=g#h", "def f(x):\n\treturn x**2\n\n\n",
    "naïve café — “quoted” … ½ ¾ ⅷ ٣٤ １２", "Привет, мир! Ёлка", "日本語のテキスト、東京タワー", "한국어 문장",
    "مرحبا بالعالم", "हिन्दी में", "👩‍👩‍👧 🦙🚀 x̷̲", "a\u00a0b\u2003c\u3000 d", "\u180e\u200b \u0085x",
    "ＡＢＣ ǅ ʰ ſ Ǆx McDonald's iPhoneX HTTPServer", "!!!???...\n", "a/b//c\r\n/d", " \n \n x \r\n\r\ny ",
    "<|im_start|>user\nhi<|im_end|>", "mixed 3rd 4th2nd", "_a__b_", "      ", "a" * 70, "\u0301\u0301a\u0301",
]


def random_texts(n):
    pool = list("abcdefgh ABC  \n\t\r0123'’.,;!?-_/\\\"()[]{}<>|@#") + [
        " the", " and", "ing", "'s", "'LL", "é", "ß", "Я", "ж", "中", "文", "ア", "한", "ع", "ा", "½",
        "٣", "🦙", "\u200d", "\u00a0", "\u2003", "\u3000", "\u0301", "\u180e", "ǅ", "ʰ", "\r\n", "  "]
    rng = random.Random(7)
    return ["".join(rng.choice(pool) for _ in range(rng.randint(1, 24))) for _ in range(n)]


def line(pre, text, ids):
    return " ".join([pre, text.encode().hex() or "-", *map(str, ids)]) + "\n"


def metadata(path, key):
    return GGUFReader(path).fields["tokenizer.ggml." + key].contents()


def smollm2(path):
    tokens, merges = metadata(path, "tokens"), metadata(path, "merges")
    vocab = {t: i for i, t in enumerate(tokens)}
    letters = "".join(ByteLevel.alphabet())
    for pre, (definition, ignore_merges) in PRE_TOKENIZERS.items():
        t = Tokenizer(BPE(vocab, [tuple(m.split(" ")) for m in merges], ignore_merges=ignore_merges))
        t.pre_tokenizer = definition
        for text in TEXTS + random_texts(60):
            words = "".join(w for w, _ in definition.pre_tokenize_str(text))
            if all(c in vocab for c in words if c in letters):  # else the text cannot be spelt
                yield line(pre, text, t.encode(text, add_special_tokens=False).ids)


def stories260k(path):
    model = spm_pb2.ModelProto()
    model.trainer_spec.model_type = spm_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(metadata(path, "tokens"))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    for piece, score, kind in zip(*(metadata(path, k) for k in ("tokens", "scores", "token_type"))):
        model.pieces.add(piece=piece, score=score, type=kind)
    t = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in TEXTS + random_texts(60):
        if text:  # SentencePiece gives nothing at all for the empty text
            yield line("-", text, t.encode(text))


(HERE / "tokenizer_smollm2.txt").write_text("".join(smollm2(sys.argv[1])))
(HERE / "tokenizer_stories260K.txt").write_text("".join(stories260k(sys.argv[2])))
