"""Base that is read once for several saved adapters: a member's fold jobs score one after another on the same weights.

An adapter is put around the base, scores and is taken off again. Scoring changes weights where it merges a float32
adapter or rounds to float16, and subtracting the adapter would not give the old bits back. So those weights are kept in
host memory, and copied back: logits have the bytes that a freshly read base gives.

On a CPU the weights of a 4-bit base are kept, too: bitsandbytes 0.50 repacks them in the first pass, and peft's reading
of the next adapter would round them once more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from oof.config import Member
from oof.model.classifier import load_base, load_classifier, with_adapter
from oof.model.lora import refuse_another_function, saved_classes, scored_member
from oof.model.optimizations import merges_exactly
from oof.model.precision import device

# The base of the latest member, and number of classes, that this process scored with.
_LATEST: dict[tuple[Member, int], SharedBase] = {}


@contextmanager
def saved_classifier(member: Member, folder: Path, tokenizer: Any) -> Iterator[Any]:
    """Inside, the classifier that :func:`oof.model.lora.save_classifier` wrote, on this device, in eval mode.

    The base stays in memory for the member's next adapter, until another member's is read or :func:`release_base`.
    It is quantised as ``score_quantise`` says.
    A member whose weights are all trained has no common base; each of its classifiers is read as a whole.

    Raises:
        UserError: as :func:`oof.model.classifier.load_classifier`.
    """
    member = scored_member(member)
    if not (folder / "adapter_config.json").is_file():
        release_base()
        yield load_classifier(member, folder, tokenizer, seed=0)
        return
    key = member, saved_classes(folder)
    if key not in _LATEST:
        release_base()  # one base at a time
        _LATEST[key] = SharedBase(member, tokenizer, key[1])
    try:
        with _LATEST[key].with_adapter(folder) as model:
            yield model
    except BaseException:  # the base may still have the adapter
        release_base()
        raise


def release_base() -> None:
    """Free the memory of the latest member's base."""
    _LATEST.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class SharedBase:
    """A member's base and copies of those of its weights that scoring changes."""

    def __init__(self, member: Member, tokenizer: Any, n_classes: int = 3) -> None:
        self.member = member
        self.base = load_base(member, tokenizer, 0, n_classes)
        self.kept: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}  # id of the parameter -> itself, its first value
        self.four_bit = [
            (module, copy.deepcopy(module.weight))
            for module in self.base.modules()
            if type(module).__name__ == "Linear4bit" and device().type == "cpu"
        ]

    @contextmanager
    def with_adapter(self, folder: Path) -> Iterator[Any]:
        """Inside, the base with the adapter and head in ``folder``; afterwards the base is as it was read."""
        refuse_another_function(self.member, folder)
        model = with_adapter(self.base, folder).to(device()).eval()
        for parameter in self._changed_by_scoring(model):
            if id(parameter) not in self.kept:
                self.kept[id(parameter)] = parameter, parameter.detach().to("cpu", copy=True)
        yield model
        self.base = model.unload()
        for parameter, value in self.kept.values():
            if parameter.dtype == value.dtype:
                parameter.data.copy_(value)
            else:  # rounded to float16
                parameter.data = value.to(parameter.device, copy=True)
        for module, weight in self.four_bit:
            module.weight = copy.deepcopy(weight)

    def _changed_by_scoring(self, model: Any) -> list[nn.Parameter]:
        """Return the weights that :func:`oof.training.inference.predict_logits` may overwrite."""
        if getattr(model, "quantization_method", None) is not None:
            return []
        if self.member.score_dtype == "float16":
            return [p for n, p in model.named_parameters() if "lora_" not in n and "score" not in n.split(".")]
        if not merges_exactly(model):
            return []
        adapted: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        return [module.get_base_layer().weight for module in adapted]
