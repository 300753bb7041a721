"""Every private or undocumented library attribute that this project relies on, so that an upgrade fails here first.

Each case names the module that uses the attribute and checks that the installed library has it, with the shape or the
behaviour that the use depends on.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import optuna
import peft.tuners.lora
import pytest
import torch
import transformers
from huggingface_hub import constants
from peft import PeftModel
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    eager_mask,
    sliding_window_causal_mask_function,
)
from transformers.modeling_flash_attention_utils import (
    FLASH_ATTN_KERNEL_FALLBACK,
    FLASH_ATTN_KERNEL_VERSIONS,
    lazy_import_flash_attention,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from oof.config import Lora
from oof.model.attention_table import HUB_KERNELS
from oof.model.lora import add_adapters
from tests.fixtures.demo_run import BASES, ROOT


class Private(NamedTuple):
    """One attribute: the class or module that has it, its name, our module that uses it, and a check that must hold."""

    package: str
    name: str
    used_by: str
    holds: Callable[[], object]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def has_parameters(owner: type, name: str, used_by: str, *names: str) -> Private:
    """Return the case of a method with exactly these parameters."""
    return Private(owner.__name__, name, used_by, lambda: parameters(getattr(owner, name)) == [*names])


def tells_whether(package: Any, name: str, used_by: str) -> Private:
    """Return the case of a function without arguments that returns a bool."""
    return Private(package.__name__, name, used_by, lambda: isinstance(getattr(package, name)(), bool))


def source(function: Any) -> str:
    return inspect.getsource(function)


def tiny_config() -> Any:
    return AutoConfig.from_pretrained(BASES / "tiny-gemma2")


def adapted_model() -> PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(BASES / "tiny-llama", num_labels=3)
    return add_adapters(base, Lora(rank=2), seed=0)


def lora_layer() -> Any:
    return next(m for m in adapted_model().modules() if isinstance(m, peft.tuners.lora.Linear))


def loading_info() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        BASES / "tiny-llama", num_labels=3, output_loading_info=True
    )[1]


def eager_computes_a_soft_cap() -> bool:
    module, query = SimpleNamespace(num_key_value_groups=1, training=False), torch.randn(1, 1, 3, 4)
    settings: dict[str, Any] = {"dropout": 0.0, "scaling": 9.0}
    capped, plain = (
        eager_attention_forward(module, query, query, query, None, **settings, softcap=cap)[0] for cap in (1.0, None)
    )
    return capped.shape == (1, 3, 1, 4) and not torch.equal(capped, plain)


def flash_attention_loads_by_name() -> bool:
    with pytest.raises((ImportError, ValueError)):
        lazy_import_flash_attention("kernels-community/not-a-kernel")
    return parameters(lazy_import_flash_attention)[0] == "implementation"


def flop_formula_of(name: str) -> Any:
    from torch.utils.flop_counter import flop_registry

    return flop_registry[getattr(torch.ops.aten, name)]


def layer_runs_its_checkpoint_function() -> bool:
    class Layer(GradientCheckpointingLayer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    layer: Any = Layer()
    layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, lambda function, *args: "recomputed"
    return layer.train()(torch.zeros(1, requires_grad=True)) == "recomputed"


def sequence_numbers_link_both_passes() -> bool:
    """The node of the last differentiable operation has the last number, and is current while it runs backward."""
    seen: list[int] = []
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    made = torch._C._autograd._get_sequence_nr() - 1
    y.grad_fn.register_hook(lambda *_: None)  # type: ignore[union-attr]

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            seen.append(torch._C._current_autograd_node()._sequence_nr())
            return gradients[0]

    watched = Watch.apply(y)
    number = watched.grad_fn._sequence_nr()
    watched.sum().backward()
    return y.grad_fn._sequence_nr() == made and seen == [number]  # type: ignore[union-attr]


TRAINER, OPTIMIZATIONS = "oof/training/classifier_trainer.py", "oof/model/optimizations.py"
ATTENTION = "oof/model/attention.py"
ATTENTION_CHECK = "oof/model/attention_check.py"
BLOCKWISE, COST, FAKE = "oof/model/blockwise_attention.py", "oof/model/cost_model.py", "oof/model/fake_tensors.py"
CLASSIFIER, MERGE = "oof/model/classifier.py", "ensemble/distillation/merge.py"
GPUS, OPERATIONS = "oof/distributed/gpus.py", "oof/model/operations.py"
TRACE = "oof/model/pass_trace.py"

RELIED_ON = [
    # transformers
    Private(
        "PretrainedConfig", "_attn_implementation", CLASSIFIER, lambda: hasattr(tiny_config(), "_attn_implementation")
    ),
    Private(
        "PretrainedConfig", "get_text_config", CLASSIFIER, lambda: tiny_config().get_text_config().hidden_size == 96
    ),
    Private("PretrainedConfig", "layer_types", TRACE, lambda: len(Gemma2Config(num_hidden_layers=4).layer_types) == 4),
    Private("Gemma2Config", "attn_logit_softcapping", ATTENTION, lambda: Gemma2Config().attn_logit_softcapping == 50.0),
    has_parameters(PreTrainedModel, "_sdpa_can_dispatch", ATTENTION, "self", "is_init_check"),
    Private(
        "transformers.modeling_utils",
        "ALL_ATTENTION_FUNCTIONS",
        ATTENTION_CHECK,
        lambda: {"sdpa", "flash_attention_2"} <= set(ALL_ATTENTION_FUNCTIONS),
    ),
    Private("modeling_gemma2", "eager_attention_forward", BLOCKWISE, eager_computes_a_soft_cap),
    Private("masking_utils", "AttentionMaskInterface", BLOCKWISE, lambda: AttentionMaskInterface.register),
    Private("masking_utils", "eager_mask", BLOCKWISE, lambda: "attention_mask" in parameters(eager_mask)),
    has_parameters(AttentionInterface, "register", BLOCKWISE, "key", "value"),
    *(
        tells_whether(transformers.utils.import_utils, name, ATTENTION)
        for name in (
            "is_flash_attn_2_available",
            "is_flash_attn_3_available",
            "is_flash_attn_4_available",
            "is_kernels_available",
        )
    ),
    Private("modeling_flash_attention_utils", "lazy_import_flash_attention", ATTENTION, flash_attention_loads_by_name),
    Private(
        "modeling_flash_attention_utils",
        "FLASH_ATTN_KERNEL_VERSIONS",
        ATTENTION,
        lambda: (
            FLASH_ATTN_KERNEL_FALLBACK == HUB_KERNELS and set(HUB_KERNELS.values()) <= {*FLASH_ATTN_KERNEL_VERSIONS}
        ),
    ),
    Private(
        "PreTrainedModel",
        "_supports_flash_attn",
        ATTENTION,
        lambda: Gemma2ForSequenceClassification._supports_flash_attn and not PreTrainedModel._supports_flash_attn,
    ),
    Private(
        "masking_utils",
        "ALL_MASK_ATTENTION_FUNCTIONS",
        ATTENTION_CHECK,
        lambda: {"sdpa", "flash_attention_4"} <= set(ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()),
    ),
    Private(
        "masking_utils",
        "sliding_window_causal_mask_function",
        ATTENTION_CHECK,
        lambda: sliding_window_causal_mask_function(2)(0, 0, torch.tensor(3), torch.tensor(2)),
    ),
    Private(
        "huggingface_hub.constants", "HF_HUB_OFFLINE", ATTENTION, lambda: constants.HF_HUB_OFFLINE in (True, False)
    ),
    tells_whether(transformers.utils.import_utils, "is_bitsandbytes_available", CLASSIFIER),
    Private("loading info", "missing_keys", CLASSIFIER, lambda: "score.weight" in loading_info()["missing_keys"]),
    Private("loading info", "mismatched_keys", CLASSIFIER, lambda: not loading_info()["mismatched_keys"]),
    Private(
        "GradientCheckpointingLayer", "_gradient_checkpointing_func", OPTIMIZATIONS, layer_runs_its_checkpoint_function
    ),
    Private(
        "GradientCheckpointingLayer",
        "gradient_checkpointing",
        OPTIMIZATIONS,
        lambda: GradientCheckpointingLayer.gradient_checkpointing is False,
    ),
    Private(
        "PreTrainedModel",
        "quantization_method",
        OPTIMIZATIONS,
        lambda: "quantization_method" in source(transformers.quantizers.base),
    ),
    Private(
        "Trainer",
        "is_distributed_loading_by_transformers",
        TRAINER,
        lambda: "if self.is_distributed_loading_by_transformers:" in source(Trainer),
    ),
    Private(
        "Trainer",
        "_sync_replicated_trainable_parameters",
        TRAINER,
        lambda: (
            "self._sync_replicated_trainable_parameters(model)" in source(Trainer)
            and parameters(Trainer._sync_replicated_trainable_parameters) == ["self", "model"]
        ),
    ),
    Private("TrainingArguments", "_n_gpu", GPUS, lambda: "return self._n_gpu" in source(TrainingArguments.n_gpu.fget)),
    Private("Trainer", "_wrap_model", GPUS, lambda: "self.args.n_gpu > 1" in source(Trainer._wrap_model)),
    has_parameters(Trainer, "_prepare_inputs", TRAINER, "self", "inputs"),
    has_parameters(Trainer, "get_decay_parameter_names", TRAINER, "self", "model"),
    has_parameters(Trainer, "training_step", TRAINER, "self", "model", "inputs", "num_items_in_batch"),
    has_parameters(Trainer, "floating_point_ops", TRAINER, "self", "inputs"),
    Private(
        "Trainer",
        "_save_checkpoint",
        TRAINER,
        lambda: (
            "self._save_checkpoint(model, trial)" in source(Trainer._maybe_log_save_evaluate)
            and parameters(Trainer._save_checkpoint) == ["self", "model", "trial"]
        ),
    ),
    Private("Trainer", "_tr_loss", TRAINER, lambda: "self._tr_loss += tr_loss_step" in source(Trainer._run_epoch)),
    Private(
        "Trainer",
        "_globalstep_last_logged",
        TRAINER,
        lambda: (
            "tr_loss_scalar / (self.state.global_step - self._globalstep_last_logged)"
            in source(Trainer._maybe_log_save_evaluate)
        ),
    ),
    has_parameters(Trainer, "_clip_grad_norm", "tests/fixtures/several_processes.py", "self", "model"),
    Private(
        "integration_utils",
        "TensorBoardCallback",
        "oof/training/callbacks.py",
        lambda: parameters(transformers.integrations.TensorBoardCallback) == ["tb_writer"],
    ),
    # peft
    *(
        Private(
            "peft.tuners.lora.Linear", name, OPTIMIZATIONS, lambda name=name: "default" in getattr(lora_layer(), name)
        )
        for name in ("lora_A", "lora_B", "lora_dropout", "scaling")
    ),
    Private("peft.tuners.lora.Linear", "lora_variant", OPTIMIZATIONS, lambda: lora_layer().lora_variant == {}),
    Private(
        "peft.tuners.lora.Linear", "active_adapters", OPTIMIZATIONS, lambda: lora_layer().active_adapters == ["default"]
    ),
    Private(
        "peft.tuners.lora.Linear", "disable_adapters", OPTIMIZATIONS, lambda: lora_layer().disable_adapters is False
    ),
    Private("peft.tuners.lora.Linear", "merged", OPTIMIZATIONS, lambda: lora_layer().merged is False),
    Private("peft.tuners.lora.Linear", "base_layer", OPTIMIZATIONS, lambda: type(lora_layer().base_layer) is nn.Linear),
    Private("LoraLayer", "get_base_layer", MERGE, lambda: type(lora_layer().get_base_layer()) is nn.Linear),
    Private("LoraLayer", "get_delta_weight", MERGE, lambda: lora_layer().get_delta_weight("default").ndim == 2),
    Private(
        "ModulesToSaveWrapper",
        "modules_to_save",
        MERGE,
        lambda: adapted_model().base_model.model.score.modules_to_save["default"].weight.shape[0] == 3,
    ),
    # torch
    Private(
        "torch.cpu",
        "_is_avx512_bf16_supported",
        "oof/model/precision.py",
        lambda: callable(torch.cpu._is_avx512_bf16_supported),
    ),
    Private(
        "torch.cpu",
        "_is_amx_tile_supported",
        "oof/model/precision.py",
        lambda: callable(torch.cpu._is_amx_tile_supported),
    ),
    Private("nn.Module", "_parameters", FAKE, lambda: "weight" in nn.Linear(1, 1)._parameters),
    Private("nn.Module", "_buffers", FAKE, lambda: nn.Linear(1, 1)._buffers == {}),
    Private("UntypedStorage", "_cdata", FAKE, lambda: isinstance(torch.zeros(1).untyped_storage()._cdata, int)),
    Private(
        "OpOverload",
        "_overloadpacket",
        OPERATIONS,
        lambda: torch.ops.aten.addmm_.default._overloadpacket is torch.ops.aten.addmm_,
    ),
    Private("torch", "_subclasses", FAKE, lambda: torch._subclasses.fake_tensor.FakeTensorMode),
    Private(
        "torch.utils",
        "_python_dispatch",
        "oof/model/operations.py",
        lambda: torch.utils._python_dispatch.TorchDispatchMode,
    ),
    Private(
        "torch.utils",
        "_pytree",
        "oof/model/cuda_autocast.py",
        lambda: torch.utils._pytree.tree_map(str, [1, {"a": 2}]) == ["1", {"a": "2"}],
    ),
    Private("torch.utils.flop_counter", "flop_registry", OPERATIONS, lambda: flop_formula_of("addmm")),
    Private("OpOverload", "_schema", OPERATIONS, lambda: torch.ops.aten.mul_.Tensor._schema.is_mutable),
    *(
        Private("torch", name, OPERATIONS, sequence_numbers_link_both_passes)
        for name in ("_C", "_autograd", "_get_sequence_nr", "_current_autograd_node", "_sequence_nr")
    ),
    # other libraries
    Private(
        "tokenizers.Tokenizer",
        "encode_special_tokens",
        "oof/encoding/tokenization.py",
        lambda: Tokenizer(models.BPE()).encode_special_tokens is False,
    ),
    Private(
        "tokenizers.Tokenizer",
        "encode_batch_fast",
        "oof/encoding/tokenization.py",
        lambda: Tokenizer(models.BPE()).encode_batch_fast(["a"], add_special_tokens=False)[0].ids == [],
    ),
    Private(
        "concurrent.futures.ProcessPoolExecutor",
        "_processes",
        "ensemble/stacking/parallel.py",
        lambda: ProcessPoolExecutor(1)._processes == {},
    ),
    Private(
        "optuna.trial.FrozenTrial",
        "_trial_id",
        "ensemble/stacking/tuning.py",
        lambda: isinstance(optuna.create_trial(value=0.0)._trial_id, int),
    ),
]
NOT_LIBRARY_INTERNALS = {"_exit", "_Hash"}  # os._exit is documented; hashlib._Hash is a name for type checkers


@pytest.mark.parametrize("private", RELIED_ON, ids=lambda p: f"{p.package}.{p.name}")
def test_the_installed_library_has_it(private: Private) -> None:
    assert private.holds()


@pytest.mark.parametrize("private", RELIED_ON, ids=lambda p: f"{p.package}.{p.name}")
def test_the_named_module_uses_it(private: Private) -> None:
    assert private.name in (ROOT / private.used_by).read_text(encoding="utf-8")


def private_names(path: Path) -> Iterator[str]:
    """Yield each private attribute of another object, and each private module, that a file uses."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = (node.module or "").split(".")
        yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


def test_no_other_private_attribute_is_used() -> None:
    files = [path for package in ("oof", "ensemble") for path in (ROOT / package).rglob("*.py")]
    used = {name for path in files for name in private_names(path)}
    assert used - {private.name for private in RELIED_ON} - NOT_LIBRARY_INTERNALS == set()
