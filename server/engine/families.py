"""Model classes that need a hand to attend through the paged cache."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from server.engine import attention


def use_paged_attention(model: PreTrainedModel) -> None:
    """Have every layer of `model` attend by the plan of the step in flight."""
    attention.register()
    own = [module for module in model.modules() if isinstance(module, GPTNeoSelfAttention)]
    if not own:
        model.set_attn_implementation(attention.NAME)
        return
    model.config._attn_implementation = attention.NAME  # no mask is built
    for module in own:
        module.__dict__["_attn"] = _GPTNeoAttention(module)


class _GPTNeoAttention:
    """GPT-Neo's `_attn`, which bypasses transformers' interface: no scaling, and a window in local layers."""

    def __init__(self, module: GPTNeoSelfAttention) -> None:
        self._module = module
        self._window = module.config.window_size if module.attention_type == "local" else None
        module.layer_idx = module.layer_id

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Arguments and result as of the method: `(1, heads, tokens, head_dim)`."""
        out, _ = attention.paged_attention(
            self._module, query, key, value, None, scaling=1.0, sliding_window=self._window
        )
        return out.transpose(1, 2), None
