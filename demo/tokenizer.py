"""The demo's tokenizer: byte-level BPE in the shape of Llama 3's, learned from the demo's own words.

The pre-tokenizer, the special tokens' names and their offsets after the base vocabulary are Llama 3's; the vocabulary is
not. Digits never merge: each digit of a number is a token, so that a model this small can learn to carry.
"""
import json
import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import arithmetic

BASE_TOKENS = 1008
SPECIAL_TOKENS = 16  # ids 1008..1023
# Llama 3's splitting rule: words with their leading space, digits in groups of up to three, punctuation, line breaks.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
TEMPLATE = ["system", "user", "assistant", "ipython", "\n\n", "Today is 1 January 2025.\n\n"]
# Common words, to fill a vocabulary of about a thousand with pieces of ordinary text.
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were all her she there would their we him been has when who will no more if out so up said what its about than into them can
only other time new some could these two may first then do any like my now over such our man me even most made after also
did many before must through years where much your way well down should because long each just state those people too mr how
little good world make very year still see own work men day get here old between both life being under three never know same
last another while us off might great states go come since against right came take used himself few house use place during
high without again home around small however found mrs part school thought went say general once upon war every does got
united left number course until always away something fact water less public put thing almost hand enough far took head yet
better set told nothing night end why called find going look asked later knew point next program city business give group
toward days young let room social side several order given present four important national face second things early among
rather often case large within big become need best area others light least open power church kind want service country began
done different god sense turn across question answer number sum result model reward score token word letter text line page
book write read list file table value true false function return class test error message response prompt language english
german french hello thanks please sorry help explain think because therefore example correct wrong sure maybe yes
""".split()


def corpus():
    """Lines to learn merges from: the task's own wording many times, then the common words once, without digits."""
    for pair in arithmetic.training_pairs(seed=0, count=2000):
        yield from (pair.prompt, pair.right, pair.wrong)
    for _ in range(200):
        yield from TEMPLATE
    for word in WORDS:
        yield from (word, " " + word, word.capitalize(), " " + word.capitalize())


def build():
    """-> the fast tokenizer (`tokenizers.Tokenizer`), 1,024 tokens, "!" being id 0."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (piece for line in corpus() for piece in re.split(r"\d+", line) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    # Added by editing the JSON: `add_special_tokens` also puts them at the end, but does not mark all of them alike.
    tree = json.loads(tokenizer.to_str())
    base = len(tree["model"]["vocab"])
    assert base == BASE_TOKENS, f"the corpus gives only {base} base tokens"
    reserved = iter(range(SPECIAL_TOKENS))
    names = [NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(SPECIAL_TOKENS)]
    tree["added_tokens"] = [
        {
            "id": base + i,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, name in enumerate(names)
    ]
    bos = {"SpecialToken": {"id": names[0], "type_id": 0}}
    bos_second = {"SpecialToken": {"id": names[0], "type_id": 1}}
    tree["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [
                    bos,
                    {"Sequence": {"id": "A", "type_id": 0}},
                    bos_second,
                    {"Sequence": {"id": "B", "type_id": 1}},
                ],
                "special_tokens": {names[0]: {"id": names[0], "ids": [base], "tokens": [names[0]]}},
            },
        ],
    }
    return Tokenizer.from_str(json.dumps(tree))


def config():
    """-> tokenizer_config.json as Llama 3's."""
    return {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "pad_token": "<|finetune_right_pad_id|>",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
