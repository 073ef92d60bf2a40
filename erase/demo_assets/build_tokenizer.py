"""Build ``tokenizer.json``: a byte-level BPE with the special tokens of Qwen2-VL; small.

Run ``python erase/demo_assets/build_tokenizer.py``. The result is deterministic: the corpus is the
text below, the trainer breaks ties by token order, and the special tokens come first in a fixed
order.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Names used by Qwen2-VL and Qwen2.5-VL prompts; their ids are 0..7 here."""

VOCABULARY_SIZE = 768
"""Tokens in all: 8 special, 256 bytes, the rest merges learnt from the corpus."""

TEMPLATE_LINES = ("You are a helpful assistant.", "system", "user", "assistant")
"""Words of the chat template. Repeated so that each becomes one token, as in the real vocabulary:
the published code skips the first 15 text tokens, which is exactly this header."""

TEMPLATE_REPEATS = 200

CORPUS = """
Describe the image. Describe the picture in one sentence. What is shown in this photo?
What colour is the flower? How many people are in the picture? Is there a building behind the trees?
Read the text on the page. What does the first line of the document say? Find the total of the table.
Which words are printed in bold? Where is the title of the page? Is the sky blue or grey?
The photo shows a temple with a curved roof under a clear sky, and people who walk along a path.
The page is a scan of a printed text with wide margins; most of the area is plain background.
The picture has a red flower in front of green leaves. The light comes from the left side.
Compare the two images. What is the difference between the first image and the second image?
Does the second image show the same place as the first one? Answer with yes or no.
Look at the chart and say which bar is the tallest. List the objects from left to right.
Summarise the video. What happens after the door opens? Who speaks at the end of the video?
Thank you. Now look at the next image and answer the same question again, please.
one two three four five six seven eight nine ten zero 0 1 2 3 4 5 6 7 8 9
"""  # noqa: E501


def build() -> Tokenizer:
    """Train the tokenizer on the corpus of this file."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = list(TEMPLATE_LINES) * TEMPLATE_REPEATS + CORPUS.strip().splitlines()
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


if __name__ == "__main__":
    build().save(str(Path(__file__).with_name("tokenizer.json")))
