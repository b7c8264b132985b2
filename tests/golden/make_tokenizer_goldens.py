"""Writes tokenizers.json: what the reference tokenizers make of texts, for tests/tokenizers/test_golden.py.

Needs transformers 5, gguf and sentencepiece in an environment of their own (the package needs none of the first):

    python tests/golden/make_tokenizer_goldens.py FOLDER_WITH_GGUF_FILES [spec_bench.jsonl]

The references, and why:
  smollm2-135m        the pieces of its tokenizer.json: Digits(individual_digits) and ByteLevel. transformers' own
                      conversion from GGUF does not cut the digits apart.
  qwen25-coder-0.5b   transformers.Qwen2Tokenizer around the file's pieces and merges.
  gemma3-270m         AutoTokenizer.from_pretrained(folder, gguf_file=…): GemmaTokenizer, merges from the pieces.
                      Runs of spaces are added as tokens: they are user-defined pieces, which SentencePiece (and so
                      the model's training) takes whole, longest first. transformers leaves them to the merges, which
                      cuts runs of more than 31 spaces in another way.

A text that begins with "<bos>" gets no second one here (transformers would double it).

Texts of Spec-Bench are not stored: per text, a hash of it and a hash of its ids.
"""

import functools
import hashlib
import json
import pathlib
import sys

import gguf
import tokenizers
import transformers

ZWJ, VS16 = "\u200d", "\ufe0f"
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "Hello  world   with    runs     of      spaces",
    " leading space",
    "trailing space ",
    "   three leading, three trailing   ",
    "\n",
    "\n\n",
    "a\n\n\n\nb\n\n\n\n\n\n\n\nc",
    "\t",
    "\ttab\t\ttwo\t\t\tthree\t\t\t\tfour",
    "line one\r\nline two\r\n\r\nline four\rold Mac",
    " \n \n  \n   \n",
    "x" + " " * 31 + "y",
    "x" + " " * 40 + "y",
    "x" + " " * 100 + "y" + "\n" * 70 + "z",
    "def f(x):\n    if x > 0:\n        return [i ** 2 for i in range(x)]\n    # nothing\n    return None\n",
    'int main(void) {\n\tfor (int i = 0; i < 10; ++i) {\n\t\tprintf("%d\\n", i);\n\t}\n\treturn 0;\n}\n',
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x <> 'it''s' GROUP BY 1; -- done",
    '<html><body><h1>Title</h1><p class="x">a &amp; b</p><table><tr><td>1</td></tr></table></body></html>',
    "0",
    "1234567890",
    "3.14159265358979, 2,718,281 and 1e-10; 0x1F; 1st 2nd 3rd",
    "Room 101 costs $99.99 (or 89,50 €) on 2024-02-29 at 23:59:59.",
    "½ ⅓ ² ³ ① ⑳ Ⅷ ٣٤٥ १२३ 一二三",
    "I'm you're he's we've they'll I'd don't DON'T I'M WE'LL ’s ‘quoted’ “double”",
    "e\u0301 vs \u00e9; A\u030a vs \u00c5; o\u0308\u0304 stacked; \u1e9b\u0323",
    "Z\u0351\u036b\u0343a\u0329\u0354l\u0340g\u0321\u0334o\u0315\u0321",
    "naïve café Straße Ærøskøbing Łódź Ñandú İstanbul ıı ﬁﬂ ĳ",
    "😀",
    "😀😃😄😁😆 and 🥺",
    f"👩{ZWJ}👩{ZWJ}👧{ZWJ}👦 👨🏽{ZWJ}💻 🏳{VS16}{ZWJ}🌈 ❤{VS16} 1{VS16}\u20e3",
    "🇩🇪🇯🇵🇺🇸 and \U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "🫠🫨🪿 newer emoji 🩷",
    "你好，世界！今天天气很好。",
    "日本語のテキスト：ひらがな、カタカナ、漢字。ｶﾀｶﾅ",
    "한국어 문장입니다. 각각의 음절.",
    "\u1112\u1161\u11ab\u1100\u1173\u11af (conjoining jamo) and 한글",
    "𠮷野家 𝒜𝓑𝒞 𝟘𝟙𝟚 𐍈 𓀀 𒀀",
    "مرحبا بالعالم، كيف حالك؟ لَا إِلٰهَ",
    "שלום עולם! בְּרֵאשִׁית",
    "नमस्ते दुनिया। क्षत्रिय",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง",
    "Привет, мир! Ёжик и объезд.",
    "Γειά σου Κόσμε — ἀρχὴ ἦν ὁ λόγος",
    "Tiếng Việt: Trường đại học, nghiên cứu",
    "\u200b\u200c\u200d\u2060\ufeff zero\u200bwidth \u00ad soft\u00adhyphen",
    "\u00a0no-break\u00a0space\u2003em\u2009thin\u3000ideographic\u2028line\u2029paragraph\u0085next",
    "\u202eright to left override\u202c \u2066isolated\u2069",
    "nul\x00inside and \x00\x00 two",
    "controls \x01\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufffd replacement \ufffe\uffff noncharacters \ue000 private",
    "▁ lower one eighth block ▁▁ and ĠĊĉ from the byte alphabet",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 300,
    "ab" * 200 + "!" * 50,
    "https://example.org/a/b-c_d?e=f&g=%20h#i user.name+tag@mail.example.com C:\\Users\\x\\y.txt",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ ¡¿§¶•ªº–≠œ∑´®†¥¨ˆøπ",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∫₀^∞ e^{−x²} dx = √π/2",
    "camelCase snake_case SCREAMING_CASE kebab-case PascalCase XMLHttpRequest2",
    '{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9\\n"}}',
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\n  - nested\n    - deeper\n\n```python\nprint('x')\n```\n",
    "ALL CAPS AND MiXeD cAsE wOrDs",
    "<0x0A> <0xE2> literal byte names",
    "<|im_end|>",
    "before<|im_start|>user\nhi<|im_end|>\nafter <|endoftext|>",
    "<start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "<bos>already begun<eos>",
    "<bos><bos> twice",
    "broken <|im_end| > <end_of_turn <unused5> <unused99999> [multimodal] <tool_call>{}</tool_call>",
    " <|im_end|> spaces around <|im_end|> ",
]
CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief. 🙂"}, {"role": "user", "content": "1 + 1?\n\n\tNow!"}],
    [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": "Another <|im_end|> one  "},
    ],
]


def metadata(path):
    reader = gguf.GGUFReader(path)
    fields = {key.removeprefix("tokenizer.ggml."): field for key, field in reader.fields.items()}
    return {key: field.contents() for key, field in fields.items()}


def merges(table):
    return [tuple(merge.split(" ")) for merge in table["merges"]]


def added(table):
    """The file's control tokens as special ones, its user-defined ones as ordinary added ones."""
    for piece, kind in zip(table["tokens"], table["token_type"], strict=True):
        if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            yield tokenizers.AddedToken(piece, normalized=False, special=kind == gguf.TokenType.CONTROL)


def smollm2(path):
    table = metadata(path)
    vocab = {piece: index for index, piece in enumerate(table["tokens"])}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges(table)))
    parts = tokenizers.pre_tokenizers
    fast.pre_tokenizer = parts.Sequence([parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)])
    fast.decoder = tokenizers.decoders.ByteLevel()
    fast.add_special_tokens(list(added(table)))
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>")
    reference.chat_template = table["tokenizer.chat_template"]
    return reference


def qwen(path):
    table = metadata(path)
    real = max(index for index, kind in enumerate(table["token_type"]) if kind != gguf.TokenType.UNUSED) + 1
    vocab = {piece: index for index, piece in enumerate(table["tokens"][:real])}
    reference = transformers.Qwen2TokenizerFast(vocab=vocab, merges=merges(table))
    for token in added(table):
        reference.add_tokens([token], special_tokens=token.special)
    reference.chat_template = table["tokenizer.chat_template"]
    return reference


def gemma(path):
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    size = len(reference)
    reference.add_tokens([tokenizers.AddedToken("▁" * n, normalized=True, special=False) for n in range(2, 32)])
    assert len(reference) == size
    return reference


REFERENCES = {"smollm2-135m": smollm2, "gemma3-270m": gemma, "qwen25-coder-0.5b": qwen}


def digest(data) -> str:
    raw = data.encode() if isinstance(data, str) else ",".join(map(str, data)).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


def golden(reference, bench):
    entries = []
    for text in TEXTS:
        begun = bool(reference.bos_token) and text.startswith(reference.bos_token)
        ids = reference.encode(text, add_special_tokens=not begun)
        plain = reference.encode(text, split_special_tokens=True)
        decoded = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        entries.append(
            {
                "ids": ids,
                "plain": None if plain == ids else plain,
                "decoded": None if decoded == text else decoded,
            }
        )
    template = functools.partial(reference.apply_chat_template, add_generation_prompt=True, return_dict=False)
    return {
        "texts": entries,
        "chats": [template(chat) for chat in CHATS] if reference.chat_template else [],
        "spec_bench": {digest(text): digest(reference.encode(text)) for text in bench},
    }


def main(folder, bench=None):
    lines = pathlib.Path(bench).read_text().splitlines() if bench else []
    turns = [turn for line in lines for turn in json.loads(line)["turns"]]
    result = {"texts": TEXTS, "chats": CHATS, "models": {}}
    for name, reference in REFERENCES.items():
        result["models"][name] = golden(reference(pathlib.Path(folder) / f"{name}.gguf"), turns)
        print(name, len(TEXTS), "texts,", len(turns), "turns")
    target = pathlib.Path(__file__).parent / "tokenizers.json"
    target.write_text(json.dumps(result, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
