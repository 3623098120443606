"""Model classes of the demo video-LMM, on the common surface of Hugging Face video-LMMs.

Frames go through a frozen tower (`encode`), a small trained projector (`project`) and stand, one token a
frame, where the prompt has its `<video>` tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from vstar_fast.errors import ModelError
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.vstar_demo.configuration import VStarDemoConfig
from vstar_fast.models.vstar_demo.efficientnet import EfficientNetLite

VIDEO_INPUTS = ("pixel_values_videos", "video_features")


class VStarDemoProjector(nn.Module):
    """Tower features -> the language model's embedding space.

    A frame is shown as it is and by its difference from its clip's mean: the first is mostly scene and clothes, the
    second mostly motion. `mean` and `scale` standardise both by the statistics of the clips it was trained on, and
    weigh them; `position` says when in the video a frame stands.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: VStarDemoConfig) -> None:
        super().__init__()
        features, hidden = 2 * config.vision_config.hidden_size, config.text_config.hidden_size
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear_1 = nn.Linear(features, config.projector_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(config.projector_size, hidden)
        self.position = nn.Embedding(config.video_positions, hidden)

    @staticmethod
    def describe(features: torch.Tensor) -> torch.Tensor:
        """Tower features `[B, F, C]` -> `[B, F, 2C]`: each frame, and its difference from the clip's mean."""
        return torch.cat([features, features - features.mean(-2, keepdim=True)], -1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `[B, F, features]` to `[B, F, hidden]`; positions are stretched to any number of frames."""
        out = self.linear_2(self.act(self.linear_1((self.describe(features) - self.mean) * self.scale)))
        return out + self._positions(features.shape[1])

    def _positions(self, frames: int) -> torch.Tensor:
        table = self.position.weight
        if frames == len(table):
            return table
        stretched = nn.functional.interpolate(table.T[None], frames, mode="linear", align_corners=frames > 1)
        return stretched[0].T


class VStarDemoPreTrainedModel(PreTrainedModel):
    """What both classes declare to transformers."""

    config: VStarDemoConfig
    config_class = VStarDemoConfig
    base_model_prefix = "model"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class VStarDemoModel(VStarDemoPreTrainedModel):
    """Tower, projector and language model, without a head."""

    def __init__(self, config: VStarDemoConfig) -> None:
        super().__init__(config)
        self.vision_tower = EfficientNetLite(config.vision_config)
        self.multi_modal_projector = VStarDemoProjector(config)
        self.language_model = LlamaModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def encode(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Pixels `[B, F, 3, H, W]` -> tower features `[B, F, features]`: frozen, so they can be kept for good."""
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != 3:
            raise ModelError(f"pixel_values_videos must be [B, F, 3, H, W], got {tuple(pixel_values_videos.shape)}")
        pixels = pixel_values_videos.flatten(0, 1).to(self.dtype)
        return self.vision_tower(pixels).unflatten(0, pixel_values_videos.shape[:2])

    def project(self, video_features: torch.Tensor) -> torch.Tensor:
        """Tower features `[B, F, features]` -> visual tokens `[B, F, hidden]`; trainable."""
        tokens: torch.Tensor = self.multi_modal_projector(video_features.to(self.dtype))
        return tokens

    def get_video_features(self, pixel_values_videos: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """`pooler_output`: visual tokens `[B, F, hidden]`; `last_hidden_state`: the tower's `[B, F, features]`."""
        features = self.encode(pixel_values_videos)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.project(features))

    def _with_video(
        self, embeds: torch.Tensor, input_ids: torch.Tensor | None, video_features: torch.Tensor
    ) -> torch.Tensor:
        """Embeddings `[B, T, hidden]` with projected frames in place of the `<video>` tokens, in order."""
        if input_ids is None:
            raise ModelError("a video needs input_ids to know where its tokens stand; inputs_embeds come merged")
        tokens = self.project(video_features).flatten(0, -2)
        places = input_ids == self.config.video_token_id
        if not torch.compiler.is_compiling() and int(places.sum()) != len(tokens):
            raise ModelError(
                f"the prompt has {int(places.sum())} <video> tokens but the videos have {len(tokens)} frames; "
                "let the processor expand <video>, one token a frame"
            )
        return embeds.masked_scatter(places.unsqueeze(-1), tokens.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of `input_ids` `[B, T]`; one of the two video inputs, or neither, for all rows.

        `cache` and `past_key_values` are the same; which of them transformers passes depends on its version.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("give exactly one of input_ids and inputs_embeds")
        if pixel_values_videos is not None and video_features is not None:
            raise ModelError("give pixel_values_videos or video_features (the tower's output of them), not both")
        embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
        if pixel_values_videos is not None:
            video_features = self.encode(pixel_values_videos)
        if video_features is not None:
            embeds = self._with_video(embeds, input_ids, video_features)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=embeds,
            use_cache=use_cache,
            **{CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )


class VStarDemoForConditionalGeneration(VStarDemoPreTrainedModel, GenerationMixin):
    """The demo video-LMM with its language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: VStarDemoConfig) -> None:
        super().__init__(config)
        self.model = VStarDemoModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def encode(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """See `VStarDemoModel.encode`: `[B, F, 3, H, W]` -> `[B, F, features]`."""
        return self.model.encode(pixel_values_videos)

    def project(self, video_features: torch.Tensor) -> torch.Tensor:
        """See `VStarDemoModel.project`: `[B, F, features]` -> `[B, F, hidden]`."""
        return self.model.project(video_features)

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `VStarDemoModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of `input_ids` `[B, T]` (of the last `logits_to_keep` positions, or of those indexed).

        `pixel_values_videos` `[V, F, 3, H, W]` or `video_features` `[V, F, features]`: the videos of all rows
        in the order of their tokens. `labels` `[B, T]`: -100 is ignored.
        """
        loss_kwargs = {k: kwargs.pop(k) for k in ("num_items_in_batch",) if k in kwargs}
        kwargs.pop("return_dict", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_features=video_features,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept, :])
        loss = None
        if labels is not None:
            vocab = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
        """As for any Llama; the video goes in with the first step only, then it is in the cache."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in VIDEO_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat every row `expand_size` times, and with it the videos it has (none, one or several)."""
        videos = {k: kwargs.pop(k) for k in VIDEO_INPUTS if kwargs.get(k) is not None}
        if expand_size > 1 and input_ids is not None:
            rows = (input_ids == self.config.video_token_id).sum(1)
            videos = {k: v[_repeat_rows(rows // v.shape[1], expand_size)] for k, v in videos.items()}
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, **videos}


def _repeat_rows(counts: torch.Tensor, times: int) -> torch.Tensor:
    """Indices of the videos of rows that are each repeated: counts [1, 2], times 2 -> 0 0 1 2 1 2."""
    groups = torch.arange(int(counts.sum()), device=counts.device).split(counts.tolist())
    return torch.cat([group.repeat(times) for group in groups])
