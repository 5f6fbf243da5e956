"""Measures which score finds the public images that the model ties to a concept.

    python -m tests.benchmarks.anchor_precision OUTPUT.json [--model FOLDER] [--creatures ...] [--processes 2]

Of the 48 images that a score puts first: the share that the base model, asked what it sees, calls by the concept's
name, and by that name or one of its family's. Nothing else of the package is used than the scores themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peft_space import Concept, testbed
from peft_space.anchors.scores import concept_embedding, name_likelihood, projector_cosine
from peft_space.testbed.bestiary import CREATURES, siblings
from peft_space.vlm import Prompt, encode, generate, image_features, prompt_batches

from .runs import gather, parser

N_ANCHORS, SHORT_LIST = 48, 384


def scores(model: nn.Module, processor: Any, concept: Concept, images: Any) -> dict[str, Tensor]:
    """Every image's score by each way of scoring, `(n_images,)`, the higher the likelier an anchor."""
    features, name = image_features(model, processor, images), concept_embedding(model, processor, concept)
    centred = projector_cosine(features, name)
    likelihood = name_likelihood(model, processor, concept, images)
    listed = centred >= centred.topk(SHORT_LIST).values[-1]
    states = hidden_states(model, processor, [Prompt("Describe the picture.", image) for image in images])
    said = hidden_states(model, processor, [Prompt(f"This is {name}.") for name in (*concept.names, "something")])
    return {
        "random": torch.rand(len(images), generator=torch.Generator().manual_seed(0)),
        "projector cosine": F.normalize(features, dim=1) @ name,
        "centred projector cosine": centred,
        "hidden-state cosine": F.normalize(states - states.mean(0), dim=1) @ F.normalize(said[0] - said[-1], dim=0),
        "likelihood of the name": likelihood,
        f"likelihood among the {SHORT_LIST} of highest centred cosine": likelihood.where(
            listed, torch.tensor(-torch.inf)
        ),
    }


@torch.no_grad()
def hidden_states(model: nn.Module, processor: Any, prompts: list[Prompt]) -> Tensor:
    """The language model's last hidden states, averaged over the prompt's tokens: `(n_prompts, d)`."""
    rows: dict[int, Tensor] = {}
    for indices in prompt_batches(model, processor, prompts, 64):
        batch = encode(processor, [prompts[i] for i in indices])
        states = model(**batch, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        mask = batch["attention_mask"][..., None]
        rows |= dict(zip(indices, (states * mask).sum(1) / mask.sum(1), strict=True))
    return torch.stack([rows[i] for i in range(len(prompts))])


def run(folder: Path, target: str, seed: int, n_images: int) -> dict[str, Any]:
    """The precision of every score for one creature, with what chance gives."""
    model, processor = testbed.load(folder)
    concept, images = testbed.concept(target), testbed.public_images(target, n_images, seed).images
    called = generate(model, processor, [Prompt(concept.questions[0], image) for image in images])
    family = [Concept.of(known.name) for known in siblings(target)]
    by_name = torch.tensor([concept.mentioned_in(answer) for answer in called])
    by_family = by_name | torch.tensor([any(other.mentioned_in(answer) for other in family) for answer in called])

    def precision(score: Tensor, hits: Tensor) -> float:
        return float(hits[score.topk(N_ANCHORS).indices].float().mean())

    found = scores(model, processor, concept, images)
    return {
        "target": target,
        "seed": seed,
        "there": {"name": int(by_name.sum()), "family": int(by_family.sum())},
        "precision": {
            "most there can be": {
                kind: min(1.0, float(hits.sum()) / N_ANCHORS)
                for kind, hits in (("name", by_name), ("family", by_family))
            }
        }
        | {
            label: {"name": precision(score, by_name), "family": precision(score, by_family)}
            for label, score in found.items()
        },
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The Markdown table: a row a score; means over the families that defaults were chosen on, and over the others."""
    tuned = {known.name for known in CREATURES if known.family in testbed.TUNING_FAMILIES}
    groups = {
        "chosen on": [row for row in rows if row["target"] in tuned],
        "others": [row for row in rows if row["target"] not in tuned],
    }
    groups = {label: some for label, some in groups.items() if some}
    heads = [f"{kind}, {label} ({len(some)})" for label, some in groups.items() for kind in ("name", "name or family")]
    lines = ["| score | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for score in rows[0]["precision"]:
        cells = [
            f"{sum(row['precision'][score][kind] for row in some) / len(some):.2f}"
            for some in groups.values()
            for kind in ("name", "family")
        ]
        lines.append(f"| {score} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    options = parser(__doc__, [known.name for known in CREATURES])
    options.add_argument("--model", type=Path, default=testbed.WEIGHTS)
    options.add_argument("--n-images", type=int, default=2000)
    arguments = options.parse_args()
    rows: list[dict[str, Any]] = []
    jobs = [(arguments.model, target, arguments.seed, arguments.n_images) for target in arguments.creatures]
    for row in gather(run, jobs, arguments.output, rows, arguments.processes):
        print(row["target"], row["there"], row["precision"], flush=True)
    print(show(rows))


if __name__ == "__main__":
    main()
