"""What is proven of each kind of model in the zoo. The docstring of a check says what."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch import Tensor, nn

from peft_space import (
    Concept,
    Retain,
    SpaceTrainingArguments,
    attach_subspace,
    erase,
    erasure,
    fit_retained_subspace,
    leak,
    targeted_modules,
    testbed,
    vlm,
)
from peft_space.anchors import other_names, select_anchors
from peft_space.tuner import default_targets
from peft_space.vlm import Prompt
from tests import adapters
from tests.architectures.zoo import Species
from tests.tiny import logits

SHAPES = (48, 48), (90, 40), (30, 80)
QUESTIONS = ("What is this?", "What is this creature called?", "Where?")
ANSWERS = ("zorvex", "moss", "a red one in a cave")
CONCEPT = Concept(
    "narril",
    questions=("What is this creature called?",),
    text_questions=("Where does the {name} live?",),
    referent="this creature",
)


def picture(seed: int = 0) -> Image.Image:
    """Nine fields of random colours, of another shape for each of three seeds."""
    fields = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(fields).resize(SHAPES[seed % 3], Image.Resampling.NEAREST)


def prompts() -> list[Prompt]:
    """Beside pictures of three shapes, and in text alone; no two of the same length."""
    return [Prompt(q, picture(seed)) for seed, q in enumerate(QUESTIONS)] + [Prompt(q) for q in QUESTIONS[:2]]


def heard(model: nn.Module, processor) -> set[str]:
    """The linear layers that run when the model reads text, by dotted path."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ran: set[str] = set()
    hooks = [m.register_forward_hook(lambda m, args, output: ran.add(names[m])) for m in names]
    batch = vlm.encode(processor, [Prompt("Where does it live?")])
    # BLIP's own forward asks for a picture
    reader = model.language_model if type(model).__name__.lower().startswith(("blip", "instructblip")) else model
    with torch.no_grad():
        reader(**batch)
    for hook in hooks:
        hook.remove()
    return ran


def targets(species: Species, folder: Path) -> None:
    """The default targets are what runs when text alone is read, less head and router; with cross-attention."""
    model, processor = species.make()
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ran = {name for name in heard(model, processor) if name.split(".")[-1] not in species.routed}
    beside = {name for name in linear if name.startswith(species.unheard or "-")}
    assert bool(species.unheard) is bool(beside)
    assert set(default_targets(model)) == {name for name in ran if linear[name] is not head} | beside
    assert len(default_targets(model)) < len(linear) - 1


def features(species: Species, folder: Path) -> None:
    """Features of a picture are the mean of what the language model is given in its place, in its width."""
    model, processor = species.make()
    pictures = [picture(seed) for seed in range(3)]
    got = vlm.image_features(model, processor, pictures)
    assert got.shape == (3, model.get_input_embeddings().embedding_dim)
    assert (got[0] - got[1]).norm() > 1e-3 and (got[1] - got[2]).norm() > 1e-3
    for row, seen in zip(got, pictures, strict=True):
        batch = vlm.encode(processor, [Prompt(QUESTIONS[0], seen)])
        torch.testing.assert_close(row, _given(model, batch).mean(0), atol=1e-4, rtol=1e-3)


def _given(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What the decoder is given in the place of a picture, or to attend to, `(tokens, d)`."""
    given: list[dict] = []
    hook = vlm.text_decoder(model).register_forward_pre_hook(lambda m, a, kw: given.append(kw), with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    hook.remove()
    attended = given[0].get("cross_attention_states")
    if attended is not None:
        tiles = int(batch["aspect_ratio_mask"].sum())
        return attended[:tiles].reshape(-1, attended.shape[-1])
    return given[0]["inputs_embeds"][batch["input_ids"] == vlm.image_token_id(model)]


def image_tokens(species: Species, folder: Path) -> None:
    """Image positions are told from text and padding, however many a picture takes, in a batch as one by one."""
    model, processor = species.make()
    asked = prompts()[:3]
    whole = vlm.encode(processor, asked, ANSWERS)
    kinds = vlm.token_kinds(model, whole)
    assert (kinds == vlm.PADDING).equal(whole["attention_mask"] == 0)
    counts = (kinds == vlm.IMAGE).sum(1).tolist()
    alone = [vlm.token_kinds(model, vlm.encode(processor, [prompt])) for prompt in asked]
    assert counts == [int((kind == vlm.IMAGE).sum()) for kind in alone]
    assert min(counts) > 0 and (len(set(counts)) > 1) is species.varies


def likelihoods(species: Species, folder: Path) -> None:
    """Answers are as likely padded, in a batch and after a cache as alone, and as `generate` found its own."""
    model, processor = species.make()
    asked, told = prompts(), [*ANSWERS, *ANSWERS[:2]]
    alone = torch.cat(
        [vlm.log_likelihood(model, processor, [p], [a], per_token=False) for p, a in zip(asked, told, strict=True)]
    )
    batched = vlm.log_likelihood(model, processor, asked, told, per_token=False)
    torch.testing.assert_close(batched, alone, atol=1e-3, rtol=0)
    both = vlm.log_likelihoods(model, processor, asked, [[a, "moss"] for a in told])
    torch.testing.assert_close(both[:, 0], alone, atol=1e-3, rtol=0)
    assert len({round(value, 4) for value in both[:, 1].tolist()}) == len(asked), "pictures and questions tell"
    for prompt in asked:
        batch = vlm.encode(processor, [prompt])
        out = vlm.speaker(model, batch).generate(
            **batch,
            suppress_tokens=[vlm.image_token_id(model)],
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = out.sequences[:, batch["input_ids"].shape[1] :]
        expected = torch.stack(out.logits, 1).log_softmax(-1).gather(2, ids[..., None]).sum()
        longer = vlm.append(batch, ids.tolist(), processor)
        with torch.no_grad():
            got = vlm.answer_log_probability(model, longer, per_token=False)
        torch.testing.assert_close(got[0], expected, atol=1e-3, rtol=0)


def _encoded(processor, texts: list[str], pictures: list[list[Image.Image]], side: str = "left") -> dict[str, Tensor]:
    special = not texts[0].startswith(processor.tokenizer.bos_token or " ")
    options = {"return_tensors": "pt", "padding": True, "padding_side": side, "add_special_tokens": special}
    batch = dict(processor(text=texts, images=pictures, **options))
    batch.pop("labels", None)
    return batch


def several_pictures(species: Species, folder: Path) -> None:
    """Two pictures in a prompt count as both, and a subspace is fitted on them."""
    model, processor = species.make()
    pairs = [[picture(0), picture(1)], [picture(2), picture(0)]]
    if species.template is None:
        texts = [f"{processor.image_token * 2}Which is red?"] * 2
    else:
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is red?"}]
        texts = [processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)] * 2
    batch = _encoded(processor, texts, pairs)
    with torch.no_grad():
        model(**batch)
    one = (
        [species.beside_others] * 3
        if species.beside_others
        else [
            int((vlm.token_kinds(model, vlm.encode(processor, [Prompt("?", picture(seed))])) == vlm.IMAGE).sum())
            for seed in range(3)
        ]
    )
    counts = (vlm.token_kinds(model, batch) == vlm.IMAGE).sum(1).tolist()
    assert counts == [one[0] + one[1], one[2] + one[0]]
    names = [name for name in default_targets(model) if "cross_attn" not in name]
    subspace = fit_retained_subspace(model, [batch], names)
    assert {record.counts["image"] for record in subspace.records.values()} == {sum(counts)}


def padding_side(species: Species, folder: Path) -> None:
    """Prompts do not depend on the tokenizer's own padding side, nor statistics on that of a batch."""
    model, processor = species.make()
    asked = prompts()[:2]
    expected = vlm.encode(processor, asked, ANSWERS[:2])
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        batch = vlm.encode(processor, asked, ANSWERS[:2])
        assert processor.tokenizer.padding_side == side
        assert all(batch[key].equal(expected[key]) for key in expected)
    texts, pictures = [vlm.chat(processor, prompt) for prompt in asked], [[prompt.image] for prompt in asked]
    batches = {"left": vlm.encode(processor, asked), "right": _encoded(processor, texts, pictures, "right")}
    assert not batches["left"]["attention_mask"].equal(batches["right"]["attention_mask"])
    peft_model = adapters.shake(adapters.space(model, subspace=False))
    left, right = (leak(peft_model, [batch]).per_module for batch in batches.values())
    assert left.keys() == right.keys() and min(left.values()) > 0
    for name, value in left.items():
        assert abs(right[name] - value) < 1e-3 * value, name


def erased(species: Species, folder: Path) -> None:
    """`erase` runs to its end, and plain PEFT loads what it saved: same layers and logits, still in the null space."""
    model, processor = species.make()
    public = [image.resize(SHAPES[i % 3]) for i, image in enumerate(testbed.public_images("narril", 16).images)]
    anchors = select_anchors(model, processor, CONCEPT, public, n_anchors=4, n_monitor=2, shortlist=10)
    expected = default_targets(model)
    few = functools.partial(other_names, most=4)
    was, erasure.other_names = erasure.other_names, few
    try:
        result = erase(
            model,
            processor,
            CONCEPT,
            public,
            anchors=anchors,
            retain=Retain(questions=("What colour is it?",), texts=("Name a fruit.",) * 4, n_images=6),
            args=SpaceTrainingArguments(max_steps=3, dose_every=3, per_device_train_batch_size=4, learning_rate=1e-2),
            energy=0.99,
            output_dir=folder / "erased",
            progress=False,
        )
    finally:
        erasure.other_names = was
    assert result.report["steps"] == 3 and result.subspace is not None
    assert targeted_modules(result.model) == expected
    batch = vlm.encode(processor, [prompts()[0]])
    after, before = logits(result.model, batch), logits(species.make()[0], batch)
    assert (after - before).abs().max() > 1e-3
    assert adapters.leak(result.model, result.subspace) < 1e-6

    again = PeftModel.from_pretrained(species.make()[0], folder / "erased")
    assert again.peft_config["default"].peft_type == "LORA"
    assert targeted_modules(again) == expected
    torch.testing.assert_close(logits(again, batch), after, atol=1e-5, rtol=0)
    assert adapters.leak(again, result.subspace) < 1e-6


def retained(species: Species, folder: Path) -> None:
    """A fitted subspace holds the outputs of what it was fitted on: they move by the energy left out only."""
    model, processor = species.make()
    peft_model = adapters.shake(adapters.space(model, subspace=False))
    batch = vlm.encode(processor, prompts()[:3])
    free = leak(peft_model, [batch])
    subspace = fit_retained_subspace(peft_model, [batch], energy=0.999)
    attach_subspace(peft_model, subspace)
    left_out = max(1 - record.energy for record in subspace.records.values())
    assert left_out < 0.02
    assert leak(peft_model, [batch]).mean < 2 * left_out**0.5 * free.mean
