"""A small tokenizer and the processor built on it, for the demo and the tests.

The vocabulary is real (byte-level BPE, trained on a page of English, under 1000 tokens) and carries
the special tokens and the chat format of Qwen2-VL. No weights are stored here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.processing_utils import ProcessorMixin

_HERE = Path(__file__).parent


class ImageTextProcessor(Qwen2_5_VLProcessor):
    """The stock ``Qwen2_5_VLProcessor`` without its video half.

    transformers builds the video processor only where torchvision is installed and the stock
    constructor insists on having one; images and text need neither. Everything else is inherited
    unchanged.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The committed tokenizer: pads on the left, ends at ``<|im_end|>``."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(_HERE / "tokenizer.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def load_processor(image_processor: Any) -> ImageTextProcessor:
    """Chat processor around a stock image processor.

    Args:
        image_processor: a ``Qwen2VLImageProcessor``.
    """
    template = (_HERE / "chat_template.jinja").read_text(encoding="utf-8")
    return ImageTextProcessor(image_processor, load_tokenizer(), chat_template=template)
