"""Run a contiguous range of a model's layers through the model's own forward.

SGLang's models can run as pipeline stages: they read ``start_layer``, ``end_layer`` and
``pp_group.is_first_rank`` / ``is_last_rank``, take ``PPProxyTensors`` in and give them out. Here one
process plays every stage in turn. Model code stays untouched, and whatever a model does around its
layers (embedding, final norm, expert placement) happens as its authors wrote it.

A model whose decoder knows no stages has its layers called here (``Architecture.staged``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.eplb.expert_distribution import get_global_expert_distribution_recorder
from sglang.srt.model_executor.forward_batch_info import PPProxyTensors
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from layered_sglang.executor.architectures import Architecture
from layered_sglang.executor.cohort_state import CarriedRows
from layered_sglang.scheduling import LayerGroup

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.lora.lora_manager import LoRAManager
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


@dataclass(frozen=True)
class _Stage:
    """The part of a pipeline group's interface that model forwards read."""

    is_first_rank: bool
    is_last_rank: bool
    world_size: int = 1
    rank_in_group: int = 0


_STAGES = {(first, last): _Stage(first, last) for first in (True, False) for last in (True, False)}


class LayerRangeModel:
    """A causal language model, runnable layer range by layer range.

    Args:
        model: SGLang's ``…ForCausalLM``.
        architecture: its registry entry.
        adapters: SGLang's LoRA manager, if the server has adapters. It holds those of one batch's rows
            at a time, so it is told of the rows before each range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        architecture: Architecture,
        adapters: LoRAManager | None = None,
    ) -> None:
        self._model: Any = model
        self._stack: Any = getattr(model, architecture.stack)
        self.architecture = architecture
        self._adapters = adapters
        self.num_layers = len(self._stack.layers)
        #: Whether a token has three positions, which differ inside images: ``mrope_positions``.
        self.three_positions = bool(getattr(model, "is_mrope_enabled", False))
        if not architecture.staged:
            return
        whole = (self._stack.start_layer, self._stack.end_layer)
        if whole != (0, self.num_layers):
            raise ValueError(f"expected layers 0 … {self.num_layers} on this rank, found {whole}")

    @property
    def captured(self) -> Sequence[int]:
        """Layers whose input a draft model reads (EAGLE-3), ascending; SGLang tells the model late."""
        return sorted(getattr(self._stack, "layers_to_capture", None) or ())

    @property
    def layers(self) -> Any:
        """The decoder layers, first to last."""
        return self._stack.layers

    def positions(self, rows: ForwardBatch) -> torch.Tensor:
        """What the layers take as the positions of ``rows``: ``[tokens]`` or ``[3, tokens]``."""
        return rows.mrope_positions if self.three_positions else rows.positions

    @property
    def has_adapters(self) -> bool:
        return self._adapters is not None

    @torch.no_grad()  # as SGLang's models say of their forward, which is not called here
    def run(
        self,
        layers: LayerGroup,
        rows: ForwardBatch,
        carried: CarriedRows | None,
        attention: AttentionBackend,
    ) -> CarriedRows | torch.Tensor:
        """Run ``layers`` for the tokens of ``rows``.

        Args:
            layers: the range; from layer 0 it embeds ``rows.input_ids``.
            rows: inputs; the layers read positions, cache locations and the token count.
            carried: activations after layer ``layers.start - 1``; ``None`` at layer 0. May be
                overwritten.
            attention: backend whose metadata is planned for exactly these rows.

        Returns:
            The carried rows after ``layers.end - 1``, or, after the model's last layer, the normed
            hidden states ``[tokens, hidden_size]``.
        """
        self._prepare_adapters(rows)
        run = self._run_stage if self.architecture.staged else self._run_layers
        with self._ending(layers), forward_context(ForwardContext(attn_backend=attention)):
            out = run(layers, rows, carried)
        # NOTE: a postponed all-reduce is a mark on the tensor object; cutting or joining rows would
        # lose it and the sum over ranks with it.
        assert not getattr(getattr(out, "hidden", None), "_sglang_needs_allreduce_fusion", False)
        return out

    def _run_stage(
        self, layers: LayerGroup, rows: ForwardBatch, carried: CarriedRows | None
    ) -> CarriedRows | torch.Tensor:
        """``layers`` as a pipeline stage of the model's own forward."""
        proxy = None
        if carried is not None:
            proxy = PPProxyTensors({"hidden_states": carried.hidden, "residual": carried.residual})
        with self._as_stage(layers):
            out = self._stack(
                rows.input_ids, self.positions(rows), rows, None, pp_proxy_tensors=proxy
            )
        if layers.end == self.num_layers:
            # Some models mark the layers themselves; what the last stage captures was captured here.
            return out[0] if isinstance(out, tuple) else out
        return CarriedRows(out["hidden_states"], out["residual"])

    def _run_layers(
        self, layers: LayerGroup, rows: ForwardBatch, carried: CarriedRows | None
    ) -> CarriedRows | torch.Tensor:
        """``layers`` one by one, as the model's own forward calls them all."""
        if carried is None:
            hidden, residual = self._stack.embed_tokens(rows.input_ids), None
        else:
            hidden, residual = carried.hidden, carried.residual
        recorder = get_global_expert_distribution_recorder()
        positions = self.positions(rows)
        for i in range(*layers):
            with recorder.with_current_layer(i):
                hidden, residual = self._stack.layers[i](
                    positions=positions,
                    hidden_states=hidden,
                    residual=residual,
                    forward_batch=rows,
                )
        if layers.end < self.num_layers:
            return CarriedRows(hidden, residual)
        return self._stack.norm(hidden, residual)[0]

    @torch.no_grad()
    def logits(
        self,
        rows: ForwardBatch,
        hidden: torch.Tensor,
        captured: list[torch.Tensor] | None = None,
    ) -> LogitsProcessorOutput:
        """SGLang's logits (and prompt logprobs) of normed hidden states ``[tokens, hidden_size]``.

        ``captured``: the inputs of :attr:`captured` layers, likewise, which it hands on to the draft.
        """
        model = self._model
        self._prepare_adapters(rows)
        return model.logits_processor(rows.input_ids, hidden, model.lm_head, rows, captured or None)

    def _prepare_adapters(self, rows: ForwardBatch) -> None:
        if self._adapters is not None:
            self._adapters.prepare_lora_batch(rows)

    @contextmanager
    def _as_stage(self, layers: LayerGroup) -> Iterator[None]:
        """Within it the decoder is the pipeline stage of ``layers``."""
        stack = self._stack
        before = (stack.start_layer, stack.end_layer, stack.pp_group)
        captured = getattr(stack, "layers_to_capture", None)
        stack.start_layer, stack.end_layer = layers
        stack.pp_group = _STAGES[layers.start == 0, layers.end == self.num_layers]
        if captured:
            stack.layers_to_capture = []  # a stage before the last would lose what it captures
        try:
            yield
        finally:
            stack.start_layer, stack.end_layer, stack.pp_group = before
            if captured:
                stack.layers_to_capture = captured

    @contextmanager
    def _ending(self, layers: LayerGroup) -> Iterator[None]:
        """Within it the last of ``layers`` leaves nothing to the next: a layer may leave its all-reduce
        to the next layer's norm, unless it is the last of its stage."""
        border = None
        if layers.end < self.num_layers:
            border = getattr(self._stack.layers[layers.end - 1], "layer_communicator", None)
        if border is None:
            yield
            return
        was_last, border.is_last_layer = border.is_last_layer, True
        try:
            yield
        finally:
            border.is_last_layer = was_last
