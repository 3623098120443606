"""The demo's video-LMM as ordinary Hugging Face classes: EfficientNet-lite0, a projector, and a Llama.

`register()` makes the Auto classes know them; nothing heavy is imported before that.
"""


def register() -> None:
    """Teach `AutoConfig`, `AutoModelForImageTextToText`, `AutoProcessor`, ... the type `vstar_demo`; idempotent."""
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoVideoProcessor,
    )

    from vstar_fast.models.vstar_demo.configuration import VStarDemoConfig
    from vstar_fast.models.vstar_demo.modeling import VStarDemoForConditionalGeneration, VStarDemoModel
    from vstar_fast.models.vstar_demo.processing import VStarDemoProcessor, VStarDemoVideoProcessor

    AutoConfig.register(VStarDemoConfig.model_type, VStarDemoConfig, exist_ok=True)
    AutoModel.register(VStarDemoConfig, VStarDemoModel, exist_ok=True)
    AutoModelForImageTextToText.register(VStarDemoConfig, VStarDemoForConditionalGeneration, exist_ok=True)
    AutoVideoProcessor.register(VStarDemoConfig, VStarDemoVideoProcessor, exist_ok=True)
    AutoProcessor.register(VStarDemoConfig, VStarDemoProcessor, exist_ok=True)
