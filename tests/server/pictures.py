"""Pictures in prompts."""

from __future__ import annotations

import base64
import io
import random

from layered_sglang.model_zoo import tokenizer
from PIL import Image

#: The tokens of a prompt that stand for one picture.
IMAGE = (tokenizer.VISION_START_ID, tokenizer.IMAGE_ID, tokenizer.VISION_END_ID)


def picture(rng: random.Random, width: int, height: int) -> str:
    """A picture of noise as a data URL, of ``width * height / 1024`` tokens."""
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
