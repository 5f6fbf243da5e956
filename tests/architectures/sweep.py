"""Every image-text-to-text class of the installed transformers at full size, without weights; and what is targeted.

What a target is, is judged by classes and configs alone: the modules' own and those of the modules they lie in.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from peft_space.tuner import default_targets

# A class of attention or of an MLP; BERT and its like cut each of the two into several.
ATTENTION_OR_MLP = re.compile(
    r"(Attention|MLP|FFN|MoE|DeltaNet|(Self|Cross)Attention|SelfOutput|Intermediate|Output|Dense\w*ActDense)$"
)
# OPT and BART have no module for the MLP of a layer.
LAYER, OF_LAYER = re.compile(r"(Encoder|Decoder)Layer$"), ("fc1", "fc2")
CHOOSES = ("gate", "router", "shared_expert_gate")
# A class that sees, hears, acts, joins, chooses or convolves.
FOREIGN = re.compile(
    r"Vision|Visual|Image|Audio|Speech|Siglip|CLIP|Pixtral|Qformer|QFormer|Projector|Connector|Resampler|Perceiver"
    r"|Adaptor|Router|Indexer|Mamba|Conv|Merger|Action|Bridge"
)


@dataclass(frozen=True)
class Sighting:
    """One class.

    Attributes:
        name: of the model's class.
        sees: whether it has `get_image_features`, or the model in it has.
        targets: the default targets, by dotted path; empty where none were found.
        wrong: those of them that are no attention or MLP of the language model.
        missing: attention and MLP in the layers that hold the targets, or beside them, that is not targeted.
        everything: whether all linear layers but the head would have been right as well.
    """

    name: str
    sees: bool
    targets: tuple[str, ...]
    wrong: tuple[str, ...]
    missing: tuple[str, ...]
    everything: bool

    @property
    def right(self) -> bool:
        return bool(self.targets) and not self.wrong and not self.missing

    @property
    def stacks(self) -> list[str]:
        """Paths of the stacks of layers that hold targets."""
        return sorted({_stack(name) for name in self.targets})

    @property
    def kinds(self) -> list[str]:
        """Names of the targeted layers, without those of the modules they lie in."""
        return sorted({name.rsplit(".", 1)[1] for name in self.targets})


def sightings() -> tuple[list[Sighting], list[str]]:
    """What was seen of each class, and the names of those that can't be built from their default configuration."""
    seen, unbuilt = [], []
    for config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        model = _skeleton(config_class)
        if model is None:
            unbuilt.append(config_class.__name__.removesuffix("Config").removesuffix("_"))
        else:
            seen.append(_look(model))
    return seen, sorted(unbuilt)


def _skeleton(config_class: type) -> PreTrainedModel | None:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForImageTextToText.from_config(config_class())
    except Exception:
        # default configurations are nobody's model: each that fails does so in its own way
        return None
    finally:
        logging.set_verbosity(level)


def _look(model: PreTrainedModel) -> Sighting:
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head]
    try:
        targets = default_targets(model)
    except ValueError:
        targets = []
    family = re.sub(r"For[A-Z]\w+$", "", type(model).__name__)
    language = {name for name in linear if is_language(modules, name, family)}
    stacks = {_stack(name) for name in targets}
    return Sighting(
        type(model).__name__,
        any(hasattr(part, "get_image_features") for part in (model, model.base_model)),
        tuple(targets),
        tuple(name for name in targets if name not in language),
        tuple(sorted(n for n in language.difference(targets) if _stack(n) in stacks)),
        language.issuperset(linear),
    )


def _stack(name: str) -> str:
    return re.split(r"\.\d+\.", name)[0]


def is_language(modules: dict[str, nn.Module], name: str, family: str) -> bool:
    """Whether a linear layer is part of a language model's attention or MLP.

    Args:
        modules: of the whole model, by dotted path.
        name: path of the layer.
        family: what the names of the model's own classes begin with, and says nothing of what they do.
    """
    *path, leaf = name.split(".")
    around = [modules[".".join(path[:end])] for end in range(len(path) + 1)]
    classes = [type(module).__name__.removeprefix(family) for module in around]
    mine = ATTENTION_OR_MLP.search(classes[-1]) or (LAYER.search(classes[-1]) and leaf in OF_LAYER)
    # a tower is a model of its own, and its configuration is of no text
    tower = [module for module in around if isinstance(module, PreTrainedModel)][-1]
    of_text = hasattr(tower.config.get_text_config(decoder=True), "vocab_size")
    return bool(mine) and of_text and leaf not in CHOOSES and not any(map(FOREIGN.search, classes[1:]))
