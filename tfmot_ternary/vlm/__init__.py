"""Vision-language and language models: from KerasHub to a `.tflite`, and text from that file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfmot_ternary.vlm.conversion import convert_causal_lm
    from tfmot_ternary.vlm.generator import AnswerScore, Generator
    from tfmot_ternary.vlm.metadata import CausalLMMetadata
    from tfmot_ternary.vlm.sampling import Sampling

# Public name -> its module, imported on first use: generating needs nothing that converting needs.
_EXPORTS = {
    "AnswerScore": "generator",
    "CausalLMMetadata": "metadata",
    "Generator": "generator",
    "Sampling": "sampling",
    "convert_causal_lm": "conversion",
}

__all__ = ["AnswerScore", "CausalLMMetadata", "Generator", "Sampling", "convert_causal_lm"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
