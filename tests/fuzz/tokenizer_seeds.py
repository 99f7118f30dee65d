"""Small tokenizers of every kind that the tokenizers library reads, so that a change of a byte means something in each."""

VOCAB = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "l", "o", "Ġ", "ll", "llo", "He", "<0xEC>", "<0x84>", "<0xB8>", "1", "2", "##o"]
IDS = {token: at for at, token in enumerate(VOCAB)}
MERGES = [["l", "l"], ["ll", "o"]]

BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": "<unk>",
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
    "vocab": IDS,
    "merges": MERGES,
}
MODELS = [
    BPE,
    BPE | {"byte_fallback": False, "ignore_merges": True, "end_of_word_suffix": "</s>", "merges": ["l l", "ll o"]},
    {"type": "Unigram", "unk_id": 0, "byte_fallback": True, "vocab": [[token, -float(at)] for token, at in IDS.items()]},
    {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": IDS},
    {"type": "WordLevel", "unk_token": "<unk>", "vocab": IDS},
]

NORMALIZERS = [
    None,
    {"type": "NFKC"},
    {"type": "Lowercase"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "StripAccents"},
    {"type": "Nmt"},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": "l+(?=o)"}, "content": "b"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    {"type": "ByteLevel"},
    {"type": "Precompiled", "precompiled_charsmap": "AAQAAAAAAAAAAA=="},
]

PRE_TOKENIZERS = [
    None,
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    {"type": "BertPreTokenizer"},
    {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "Digits", "individual_digits": True},
    {"type": "UnicodeScripts"},
    {"type": "CharDelimiterSplit", "delimiter": "l"},
    {"type": "FixedLength", "length": 3},
    {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}"}, "behavior": "Removed", "invert": True},
]

POST_PROCESSORS = [
    None,
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
    {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": True},
    {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    },
]

DECODERS = [
    None,
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def sequence(key: str, part: dict | None) -> dict | None:
    """The part in a sequence of one."""
    return part and {"type": "Sequence", key: [part]}


def tokenizers() -> list[dict]:
    """As many as the longest list of parts has, times the models; each part is met, and in turn inside a sequence."""
    found = []
    for at in range(max(map(len, (NORMALIZERS, PRE_TOKENIZERS, POST_PROCESSORS, DECODERS)))):
        parts = [them[at % len(them)] for them in (NORMALIZERS, PRE_TOKENIZERS, POST_PROCESSORS, DECODERS)]
        if at % 2:
            parts = [sequence(*it) for it in zip(("normalizers", "pretokenizers", "processors", "decoders"), parts)]
        found.append(tokenizer(MODELS[at % len(MODELS)], *parts))
    return found + [tokenizer(model, None, None, None, None) for model in MODELS]


def tokenizer(model: dict, normalizer: dict | None, splitter: dict | None, processor: dict | None, decoder: dict | None) -> dict:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 1, "content": "<s>"} | special,
            {"id": len(VOCAB), "content": "<|user|>"} | special | {"rstrip": True},
            {"id": len(VOCAB) + 1, "content": "lo, "} | special | {"special": False, "normalized": True},
        ],
        "normalizer": normalizer,
        "pre_tokenizer": splitter,
        "post_processor": processor,
        "decoder": decoder,
        "model": model,
    }
