"""Mean of a training's weights over its last optimizer steps (stochastic weight averaging).

The mean of LoRA's factors A and B is taken, each over the steps of one training, in which they change little; the mean
over *different* trainings needs the products B A (:mod:`ensemble.distillation.merge`). A checkpoint holds the mean so
far, so that a resumed training ends with the same weights.

Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, UAI 2018.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn
from transformers import TrainerCallback

from oof.distributed.process_group import rank

FILE = "average.safetensors"  # in a checkpoint


class WeightAverage(TrainerCallback):
    """Averages the trained weights as they are after each of the last steps.

    Args:
        share: of the steps, 0 to 1; 0 = no average.
        n_steps: optimizer steps of the training.
        checkpoints: folder of the trainer's checkpoints.
    """

    def __init__(self, share: float, n_steps: int, checkpoints: Path) -> None:
        self.n_steps, self.n_averaged = n_steps, max(1, round(share * n_steps)) if share else 0
        self.checkpoints = checkpoints
        self.mean: dict[str, torch.Tensor] = {}
        self.update: Any = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        n_before = state.global_step - 1 - (self.n_steps - self.n_averaged)
        if not self.n_averaged or n_before < 0:
            return
        weights = _trained(model)
        if not n_before:
            self.mean = {name: weight.clone() for name, weight in weights.items()}
            return
        self._resume(state.global_step - 1)
        mean = [self.mean[name].to(weight.device) for name, weight in weights.items()]
        self.update(mean, list(weights.values()), n_before)
        self.mean = dict(zip(weights, mean, strict=True))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.mean and rank() == 0:
            save_file(self.mean, self._file(state.global_step))

    def apply(self, model: nn.Module) -> None:
        """Replace the trained weights by their mean, after the last step."""
        if self.n_averaged:
            self._resume(self.n_steps)
            with torch.no_grad():
                for name, weight in _trained(model).items():
                    weight.copy_(self.mean[name])

    def _resume(self, step: int) -> None:
        """Read the mean in the checkpoint of a step, if this process has gone on from there."""
        self.mean = self.mean or load_file(self._file(step))

    def _file(self, step: int) -> Path:
        return self.checkpoints / f"checkpoint-{step}" / FILE


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
