"""Seventeen kinds of vision-language model, tiny and random, each with the real classes of its processor.

Tokenizers are learned on the spot. Chat templates write what those of the released checkpoints write for questions,
pictures and answers; three of the families have none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import logging

from tests.tiny import TEXT, WIDTH, louder

# the module asks torchvision for nothing but a function that is the same without it
with patch.dict(sys.modules, {"transformers.models.pixtral.image_processing_pixtral": image_processing_pil_pixtral}):
    from transformers.models.pixtral.processing_pixtral import PixtralProcessor

VISION = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCH = 14
NORMAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
HEARD = "Name the creature in this picture. What is it called? Where does it live? In a cave; it is red and has horns."
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


@dataclass(frozen=True)
class Species:
    """One kind of model.

    Attributes:
        name: what it is called in the table.
        build: makes the model for a tokenizer, and its processor.
        template: its chat template; `None` for a processor that has none.
        tokens: its special tokens by what they are for; those of a kind that every model has may be left out.
        more: special tokens that are for nothing in particular.
        varies: whether a picture's shape tells how many tokens it takes.
        pictures: most pictures that a prompt may hold.
        routed: names of the linear layers in its decoder that only choose who is to work.
        beside_others: how many tokens a picture takes that shares its prompt, where that is not as many as alone.
        unheard: path of what in its decoder runs beside a picture only.
    """

    name: str
    build: Callable[[Species, PreTrainedTokenizerFast], tuple[PreTrainedModel, ProcessorMixin]]
    template: str | None
    tokens: dict[str, str | None]
    more: tuple[str, ...] = ()
    varies: bool = True
    pictures: int = 2
    routed: tuple[str, ...] = ()
    beside_others: int = 0
    unheard: str = ""

    def make(self, template: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
        """Model, in evaluation mode, and processor: the caller's own, and the same each time.

        Args:
            template: another chat template.
        """
        torch.manual_seed(0)
        level = logging.get_verbosity()
        # the architectures' default special tokens lie outside this vocabulary, and they say so at length
        logging.set_verbosity_error()
        try:
            model, processor = self.build(self, tokenizer(self.tokens, self.more))
        finally:
            logging.set_verbosity(level)
        if template is not None:
            processor.chat_template = template
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        return louder(model.eval()), processor


def tokenizer(tokens: dict[str, str | None], more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, so that any script can be written and a name takes many pieces.

    Args:
        tokens: special tokens by name. `bos_token` is put in front of every text, unless it is `None`.
        more: special tokens without a name.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [HEARD], trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    known = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | tokens
    special = dict.fromkeys([*filter(None, known.values()), *more])
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    begin = known["bos_token"]
    if begin is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B:1", special_tokens=[(begin, backend.token_to_id(begin))]
        )
    standard = {name: known.pop(name) for name in ("bos_token", "eos_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **standard, extra_special_tokens=known, clean_up_tokenization_spaces=False
    )


def text(tokens: PreTrainedTokenizerFast, **changes: Any) -> dict[str, Any]:
    """A text configuration of the tokenizer's vocabulary."""
    ids = {f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # tied to its input, a random model says its last token again
    loose = {"tie_word_embeddings": False, "max_position_embeddings": 4096}
    return TEXT | ids | loose | {"vocab_size": len(tokens)} | changes


def _for_pictures(processor: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor, that can be made without a video processor: those need torchvision."""

    def check(self, name, value):
        return None if name == "video_processor" else processor.check_argument_for_proper_class(self, name, value)

    return type(processor.__name__, (processor,), {"check_argument_for_proper_class": check})


def _llava(species, tokens):
    vision = hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=PATCH, projection_dim=16)
    config = hf.LlavaConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**text(tokens)), image_token_index=tokens.image_token_id
    )
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **NORMAL)
    processor = hf.LlavaProcessor(
        images,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=species.template,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _llava_next(species, tokens):
    vision = hf.CLIPVisionConfig(**VISION, image_size=28, patch_size=PATCH, projection_dim=16)
    grids = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaNextConfig(
        vision_config=vision,
        text_config=hf.MistralConfig(**text(tokens)),
        image_token_index=tokens.image_token_id,
        image_grid_pinpoints=grids,
    )
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids, **NORMAL
    )
    processor = hf.LlavaNextProcessor(
        images,
        tokens,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=species.template,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(species, tokens):
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=PATCH, vision_use_head=False)
    grids = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text(tokens)),
        image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id,
        image_grid_pinpoints=grids,
    )
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=grids, **NORMAL)
    processor = _for_pictures(hf.LlavaOnevisionProcessor)(
        images, tokens, num_image_tokens=4, vision_feature_select_strategy="full", chat_template=species.template
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _qwen_ids(tokens):
    return {
        "image_token_id": tokens.image_token_id,
        "video_token_id": tokens.video_token_id,
        "vision_start_token_id": tokens.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokens.convert_tokens_to_ids("<|vision_end|>"),
    }


def _qwen_images(patch):
    return hf.Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": (2 * patch) ** 2, "longest_edge": 16 * patch**2}, **NORMAL
    )


def _qwen2_vl(species, tokens):
    vision = {"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2, "num_heads": 2}
    config = hf.Qwen2VLConfig(
        text_config=text(tokens, rope_parameters=MROPE), vision_config=vision, **_qwen_ids(tokens)
    )
    processor = _for_pictures(hf.Qwen2VLProcessor)(_qwen_images(14), tokens, chat_template=species.template)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(species, tokens):
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": WIDTH}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56}
    config = hf.Qwen2_5_VLConfig(
        text_config=text(tokens, rope_parameters=MROPE), vision_config=vision, **_qwen_ids(tokens)
    )
    processor = _for_pictures(hf.Qwen2_5_VLProcessor)(_qwen_images(14), tokens, chat_template=species.template)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vision():
    vision = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": WIDTH}
    return vision | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}


def _qwen3_vl(species, tokens):
    words = text(tokens, rope_parameters=MROPE | {"mrope_interleaved": True}, head_dim=16)
    config = hf.Qwen3VLConfig(text_config=words, vision_config=_qwen3_vision(), **_qwen_ids(tokens))
    processor = _for_pictures(hf.Qwen3VLProcessor)(_qwen_images(16), tokens, chat_template=species.template)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _qwen3_vl_moe(species, tokens):
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [0]}
    words = text(tokens, rope_parameters=MROPE | {"mrope_interleaved": True}, head_dim=16, **experts)
    config = hf.Qwen3VLMoeConfig(text_config=words, vision_config=_qwen3_vision(), **_qwen_ids(tokens))
    processor = _for_pictures(hf.Qwen3VLProcessor)(_qwen_images(16), tokens, chat_template=species.template)
    return hf.Qwen3VLMoeForConditionalGeneration(config), processor


def _gemma3(species, tokens):
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=7, vision_use_head=False)
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text(tokens, head_dim=16, sliding_window=16)),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_id=tokens.image_token_id,
        boi_token_id=tokens.boi_token_id,
        eoi_token_id=tokens.eoi_token_id,
        tie_word_embeddings=False,
    )
    images = hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)
    processor = hf.Gemma3Processor(images, tokens, chat_template=species.template, image_seq_length=4)
    model = hf.Gemma3ForConditionalGeneration(config)
    # starts from zero, and no picture would tell from another
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, processor


def _paligemma(species, tokens):
    images = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tokens)
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=PATCH, vision_use_head=False)
    config = hf.PaliGemmaConfig(
        vision_config=vision,
        text_config=hf.GemmaConfig(**text(tokens, head_dim=16)),
        image_token_index=tokens.image_token_id,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
        tie_word_embeddings=False,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _idefics3(species, tokens):
    config = hf.Idefics3Config(
        vision_config=hf.Idefics3VisionConfig(**VISION, image_size=28, patch_size=7).to_dict(),
        text_config=hf.LlamaConfig(**text(tokens)),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        pad_token_id=tokens.pad_token_id,
        scale_factor=2,
    )
    images = hf.Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True, **NORMAL
    )
    processor = hf.Idefics3Processor(images, tokens, image_seq_len=4, chat_template=species.template)
    return hf.Idefics3ForConditionalGeneration(config), processor


def _smolvlm(species, tokens):
    config = hf.SmolVLMConfig(
        vision_config=hf.SmolVLMVisionConfig(**VISION, image_size=28, patch_size=7).to_dict(),
        text_config=hf.LlamaConfig(**text(tokens)),
        image_token_id=tokens.image_token_id,
        pad_token_id=tokens.pad_token_id,
        scale_factor=2,
    )
    images = hf.SmolVLMImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True, **NORMAL
    )
    # it spells the length of videos
    with patch.object(processing_smolvlm, "num2words", str):
        processor = _for_pictures(hf.SmolVLMProcessor)(
            images, tokens, SimpleNamespace(num_frames=1, fps=1), image_seq_len=4, chat_template=species.template
        )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _internvl(species, tokens):
    vision = hf.InternVLVisionConfig(**VISION, image_size=[28, 28], patch_size=[7, 7])
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**text(tokens)),
        image_token_id=tokens.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=3, **NORMAL
    )
    processor = _for_pictures(hf.InternVLProcessor)(images, tokens, image_seq_length=4, chat_template=species.template)
    return hf.InternVLForConditionalGeneration(config), processor


def _mistral3(species, tokens):
    vision = hf.PixtralVisionConfig(**VISION, image_size=56, patch_size=PATCH)
    config = hf.Mistral3Config(
        vision_config=vision,
        text_config=hf.MistralConfig(**text(tokens, head_dim=16)),
        image_token_index=tokens.convert_tokens_to_ids("[IMG]"),
        tie_word_embeddings=False,
        spatial_merge_size=2,
    )
    images = hf.PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size=28, **NORMAL)
    processor = PixtralProcessor(
        images, tokens, patch_size=PATCH, spatial_merge_size=2, chat_template=species.template
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


def _aya_vision(species, tokens):
    vision = hf.SiglipVisionConfig(**VISION, image_size=28, patch_size=7, vision_use_head=False)
    config = hf.AyaVisionConfig(
        vision_config=vision,
        text_config=hf.Cohere2Config(**text(tokens, sliding_window=16)),
        image_token_index=tokens.convert_tokens_to_ids("<|IMG_PATCH|>"),
        tie_word_embeddings=False,
    )
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=3, **NORMAL
    )
    processor = hf.AyaVisionProcessor(
        images, tokens, patch_size=7, img_size=28, downsample_factor=2, chat_template=species.template
    )
    return hf.AyaVisionForConditionalGeneration(config), processor


def _mllama(species, tokens):
    vision = hf.MllamaVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        vision_output_dim=2 * WIDTH,
        image_size=28,
        patch_size=PATCH,
        max_num_tiles=2,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )
    words = text(tokens, cross_attention_layers=[1], vocab_size=len(tokens) - 1)
    config = hf.MllamaConfig(
        vision_config=vision, text_config=words, image_token_index=tokens.convert_tokens_to_ids("<|image|>")
    )
    images = hf.MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2, **NORMAL)
    processor = hf.MllamaProcessor(images, tokens, chat_template=species.template)
    model = hf.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        # released checkpoints have opened the gates
        if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate")):
            torch.nn.init.constant_(parameter, 0.5)
    return model, processor


def _blip_config(config, tokens):
    """The parts that BLIP-2 and InstructBLIP share; their processors have added the image's token to `tokens`."""
    words = text(tokens, ffn_dim=48, word_embed_proj_dim=WIDTH, dropout=0.0)
    asking = VISION | {"cross_attention_frequency": 1, "encoder_hidden_size": WIDTH, "vocab_size": len(tokens)}
    return config(
        vision_config=VISION | {"image_size": 28, "patch_size": PATCH, "initializer_range": 0.02},
        qformer_config=asking | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        text_config=hf.OPTConfig(**{key: words[key] for key in words if hasattr(hf.OPTConfig(), key)}),
        num_query_tokens=3,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )


def _blip_2(species, tokens):
    images = hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)
    processor = hf.Blip2Processor(images, tokens, num_query_tokens=3)
    return hf.Blip2ForConditionalGeneration(_blip_config(hf.Blip2Config, tokens)), processor


def _instructblip(species, tokens):
    images = hf.BlipImageProcessorPil(size={"height": 28, "width": 28}, **NORMAL)
    processor = hf.InstructBlipProcessor(images, tokens, tokenizer({}), num_query_tokens=3)
    return hf.InstructBlipForConditionalGeneration(_blip_config(hf.InstructBlipConfig, tokens)), processor


def _turns(begin: str, user: str, assistant: str, end: str, image: str, *, system: str = "", start: str = "") -> str:
    """A chat template: each turn is `begin`, its role, a line break, its content and `end`.

    Args:
        system: what stands first where no system turn is given.
        start: what stands before everything.
    """
    return (
        f"{start}{{% for message in messages %}}"
        + (f"{{% if loop.first and message['role'] != 'system' %}}{system}{{% endif %}}" if system else "")
        + f"{begin}{{% if message['role'] == 'user' %}}{user}{{% elif message['role'] == 'assistant' %}}{assistant}"
        "{% else %}system\n{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
        f"{{% endif %}}{end}{{% endfor %}}{{% if add_generation_prompt %}}{begin}{assistant}{{% endif %}}"
    )


_VICUNA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_INST = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{{ ' [/INST]' if message['role'] == 'user' else eos_token if message['role'] == 'assistant' else '\n' }}"
    "{% endfor %}"
)
_PIXTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' }}"
    "{% endif %}{% for part in message['content'] %}{{ '[IMG]' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% if message['role'] == 'user' %}{{ '[/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '[/SYSTEM_PROMPT]' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
_IDEFICS3 = (
    "<|begin_of_text|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{{ line['text'] if line['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_GEMMA = _turns("<start_of_turn>", "user\n", "model\n", "<end_of_turn>\n", "<start_of_image>", start="{{ bos_token }}")
_HELPFUL = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_QWEN = ("<|im_start|>", "user\n", "assistant\n", "<|im_end|>\n", "<|vision_start|><|image_pad|><|vision_end|>")
_QWEN_TOKENS = {
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "turn_token": "<|im_start|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3))
_COHERE = ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
_HEADER = ("<|start_header_id|>", "user<|end_header_id|>\n\n", "assistant<|end_header_id|>\n\n", "<|eot_id|>")

ZOO = {
    species.name: species
    for species in (
        Species("LLaVA-1.5", _llava, _VICUNA, {"image_token": "<image>"}, varies=False),
        Species("LLaVA-NeXT", _llava_next, _INST, {"image_token": "<image>"}),
        Species(
            "LLaVA-OneVision",
            _llava_onevision,
            _turns("<|im_start|>", "user ", "assistant\n", "<|im_end|>", "<image>\n"),
            {"bos_token": None, "eos_token": "<|im_end|>", "image_token": "<image>", "video_token": "<video>"},
            beside_others=5,
        ),
        Species("Qwen2-VL", _qwen2_vl, _turns(*_QWEN, system=_HELPFUL), _QWEN_TOKENS),
        Species("Qwen2.5-VL", _qwen2_5_vl, _turns(*_QWEN, system=_HELPFUL), _QWEN_TOKENS),
        Species("Qwen3-VL", _qwen3_vl, _turns(*_QWEN), _QWEN_TOKENS),
        Species("Qwen3-VL-MoE", _qwen3_vl_moe, _turns(*_QWEN), _QWEN_TOKENS, routed=("gate",)),
        Species(
            "Gemma 3",
            _gemma3,
            _GEMMA,
            {
                "image_token": "<image_soft_token>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "sot_token": "<start_of_turn>",
                "eot_token": "<end_of_turn>",
            },
            varies=False,
        ),
        Species("PaliGemma", _paligemma, None, {"image_token": "<image>"}, varies=False),
        Species(
            "Idefics3",
            _idefics3,
            _IDEFICS3,
            {"bos_token": "<|begin_of_text|>", "eos_token": "<end_of_utterance>"},
            more=("<fake_token_around_image>", "<image>", "<global-img>", *_TILES),
        ),
        Species(
            "SmolVLM",
            _smolvlm,
            _IDEFICS3.replace("<|begin_of_text|>", "<|im_start|>"),
            {
                "bos_token": "<|im_start|>",
                "eos_token": "<end_of_utterance>",
                "fake_image_token": "<fake_token_around_image>",
                "image_token": "<image>",
                "global_image_token": "<global-img>",
                "end_of_utterance_token": "<end_of_utterance>",
            },
            more=_TILES,
        ),
        Species(
            "InternVL",
            _internvl,
            _turns("<|im_start|>", "user\n", "assistant\n", "<|im_end|>\n", "<IMG_CONTEXT>\n"),
            {
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
        ),
        Species(
            "Mistral3 (Pixtral tower)",
            _mistral3,
            _PIXTRAL,
            {},
            more=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        ),
        Species(
            "Aya Vision",
            _aya_vision,
            _turns(*_COHERE, "<image>", start="{{ bos_token }}"),
            {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"},
            more=(
                "<|START_OF_TURN_TOKEN|>",
                "<|USER_TOKEN|>",
                "<|CHATBOT_TOKEN|>",
                "<|START_OF_IMG|>",
                "<|END_OF_IMG|>",
                "<|IMG_PATCH|>",
                "<|IMG_LINE_BREAK|>",
                "TILE",
                "TILE_GLOBAL",
            ),
        ),
        Species(
            "Mllama",
            _mllama,
            _turns(*_HEADER, "<|image|>", start="{{ bos_token }}"),
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            more=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"),
            varies=False,
            unheard="model.language_model.layers.1.",
        ),
        Species("BLIP-2", _blip_2, None, {}, varies=False, pictures=1),
        Species("InstructBLIP", _instructblip, None, {}, varies=False, pictures=1),
    )
}
