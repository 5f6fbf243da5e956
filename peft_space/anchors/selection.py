"""TPAS: text-guided proxy anchor selection. Finds the public images that the model itself ties to the concept."""

from __future__ import annotations

import csv
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from ..concepts import Concept, ImageSource, PublicImages, image_source, load_public_images
from ..concepts.images import Undecoded, content_key
from ..concepts.sources import Entry
from ..processes import together
from ..vlm import Prompt, generate, image_features
from .approximate import approximately_nearest
from .index import FeatureIndex, index_images
from .scores import concept_embedding, name_likelihood, projector_cosine
from .search import cosines, nearest

MIN_ANCHORS = 2
OTHERS = 2048
"""Of a set that is not held in memory, so many random pictures are kept at hand beside the short list."""

_SAMPLE = 128
"""So many images that the cosine leaves out are asked about, to see whether it tells anything."""


class TooFewAnchors(ValueError):
    """Too few public images are tied to a name."""


@dataclass(frozen=True)
class Whole:
    """The set behind a `PublicImages` that holds only a short list and a sample of it.

    Attributes:
        images: how many there are.
        places: of those that are held.
        counts: how many of all have a cosine in each of as many bins of -1 to 1.
    """

    images: int
    places: tuple[int, ...]
    counts: Tensor

    def histogram(self) -> tuple[Tensor, Tensor]:
        """Counts and edges of 20 bins from the lowest cosine to the highest."""
        edges = torch.linspace(-1, 1, len(self.counts) + 1)
        seen = self.counts.nonzero()[:, 0]
        low, high = float(edges[seen[0]]), float(edges[seen[-1] + 1])
        centres = (edges[1:] + edges[:-1]) / 2
        return torch.histogram(centres, bins=20, range=(low, high), weight=self.counts.float())


@dataclass(frozen=True)
class Anchors:
    """The chosen anchors, and the scores that they were chosen by.

    Attributes:
        concept: what they stand for.
        public: the set they were chosen from.
        indices: the anchors, by their place in `public`, likeliest first.
        monitor: images that scored as high but are kept out of training, to see by how far the erasure has come.
        cosine: projector cosine of every public image, `(n_public,)`.
        likelihood: mean log p(name | image) of the short list, `(n_public,)`, NaN elsewhere; nats per token.
        threshold: the cosine that an image had to reach to be on the short list.
        recognised: images that the model calls by the name outright and that `drop_recognised` left out.
        whole: where `public` is only the short list and a sample, what they were taken from.
        listed_by: what made the short list: "likelihood" where the cosine told nothing.
    """

    concept: Concept
    public: PublicImages
    indices: tuple[int, ...]
    monitor: tuple[int, ...]
    cosine: Tensor
    likelihood: Tensor
    threshold: float
    recognised: tuple[int, ...] = ()
    whole: Whole | None = None
    listed_by: Literal["cosine", "likelihood"] = "cosine"

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def images(self) -> Sequence[Image.Image]:
        return self.public.take(self.indices).images

    def place(self, index: int) -> int:
        """Where an image of `public` is in the set that was searched."""
        return index if self.whole is None else self.whole.places[index]

    def unrelated(self, n_images: int, seed: int = 0) -> tuple[int, ...]:
        """Random public images away from the anchors: none of the likeliest half of the short list."""
        likely = self.likelihood.nan_to_num(-torch.inf)
        listed = int((~self.likelihood.isnan()).sum())
        taken = {*self.indices, *self.monitor, *self.recognised, *likely.topk(listed // 2).indices.tolist()}
        free = torch.tensor([i for i in range(len(self.public)) if i not in taken], dtype=torch.long)
        order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed))
        return tuple(free[order[:n_images]].tolist())

    def next_likeliest(self, n_images: int) -> tuple[int, ...]:
        """The likeliest public images that were not chosen, likeliest first."""
        likely = self.likelihood.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
        chosen = {*self.indices, *self.monitor, *self.recognised}
        return tuple(i for i in likely if i not in chosen and not self.likelihood[i].isnan())[:n_images]

    def diagnostics(self) -> dict[str, Any]:
        """What a user needs to trust the choice: counts, margins and the score histogram."""
        counts, edges = torch.histogram(self.cosine, bins=20) if self.whole is None else self.whole.histogram()
        chosen = self.likelihood[list(self.indices)]
        listed = self.likelihood[~self.likelihood.isnan()]
        return {
            "public_images": len(self.public) if self.whole is None else self.whole.images,
            "skipped": len(self.public.skipped),
            "passed": len(listed),
            "listed_by": self.listed_by,
            "anchors": len(self),
            "monitor": len(self.monitor),
            "recognised_dropped": len(self.recognised),
            "threshold": round(self.threshold, 4),
            "threshold_margin": round(float(self.cosine[list(self.indices)].mean()) - self.threshold, 4),
            "best_cosine": round(float(self.cosine.max()), 4),
            "anchor_log_likelihood": [round(float(x), 3) for x in (chosen.max(), chosen.mean(), chosen.min())],
            "short_list_log_likelihood_median": round(float(listed.median()), 3),
            "histogram": {
                "edges": [round(x, 4) for x in edges.tolist()],
                "counts": [int(x) for x in counts.tolist()],
            },
        }

    def contact_sheet(self, side: int = 96, columns: int = 12) -> Image.Image:
        """The anchors as one picture, each with its log p(name) per token."""
        rows = -(-len(self) // columns)
        sheet = Image.new("RGB", (columns * side, rows * (side + 14)), "white")
        pen = ImageDraw.Draw(sheet)
        for place, index in enumerate(self.indices):
            x, y = place % columns * side, place // columns * (side + 14)
            sheet.paste(self.public.images[index].resize((side - 4, side - 4)), (x + 2, y + 2))
            pen.text((x + 4, y + side - 1), f"{self.likelihood[index]:.2f}", fill="black")
        return sheet

    def write_scores(self, path: str | Path) -> None:
        """The scores and the role of every image of `public`, as CSV."""
        roles = dict.fromkeys(self.indices, "anchor") | dict.fromkeys(self.monitor, "monitor")
        roles |= dict.fromkeys(self.recognised, "recognised")
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("id", "cosine", "log_likelihood", "role"))
            for index, name in enumerate(self.public.ids):
                said = self.likelihood[index].item()
                row = (name, f"{self.cosine[index].item():.5f}", "" if said != said else f"{said:.4f}")
                writer.writerow((*row, roles.get(index, "")))

    @classmethod
    def read_scores(cls, path: str | Path, concept: str | Concept, public_images: Any) -> Anchors:
        """The anchors of an earlier erasure again, from the table that `write_scores` left.

        Args:
            path: `anchors.csv`.
            concept: what they stand for.
            public_images: the set they were chosen from, as for `load_public_images`; pictures are found by their ids.

        Raises:
            ValueError: the file is no such table, or a picture of it is not in the set.
        """
        rows = _rows_of(path)
        ids = {name for name, *_ in rows}
        public = load_public_images(public_images) if in_memory(public_images) else _named(public_images, ids)
        places = {name: place for place, name in enumerate(public.ids)}
        cosine = torch.full((len(public),), -torch.inf)
        likelihood = torch.full((len(public),), torch.nan)
        roles: dict[str, list[int]] = {role: [] for role in _ROLES}
        for name, cosine_of_it, said_of_it, role in rows:
            if name not in places:
                raise ValueError(
                    f"`public_images` must hold every picture of {path}; got a set without {name!r}. Give the set "
                    "that the anchors were chosen from."
                )
            place = places[name]
            cosine[place], likelihood[place] = cosine_of_it, said_of_it
            roles[role].append(place)
        listed = cosine[~likelihood.isnan()]
        likeliest = sorted(roles["anchor"], key=lambda place: -float(likelihood[place]))
        return cls(
            Concept.of(concept),
            public,
            tuple(likeliest),
            tuple(roles["monitor"]),
            cosine,
            likelihood,
            float(listed.min()) if len(listed) else math.nan,
            tuple(roles["recognised"]),
        )


_ROLES = ("anchor", "monitor", "recognised", "")


def _rows_of(path: str | Path) -> list[tuple[str, float, float, str]]:
    """Id, cosine, log-likelihood and role of every picture in a table that `Anchors.write_scores` left."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                (row["id"], float(row["cosine"]), float(row["log_likelihood"] or "nan"), row["role"])
                for row in csv.DictReader(file)
            ]
        if odd := {role for *_, role in rows} - set(_ROLES):
            raise ValueError(f"unknown roles {sorted(map(str, odd))[:3]}")
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`path` must be a table of anchors as `erase` writes it; got {path}: {error!s:.200}. Do choose them anew."
        ) from error
    return rows


@together()
def select_anchors(
    model: nn.Module,
    processor: Any,
    concept: str | Concept,
    public_images: Any,
    *,
    n_anchors: int = 48,
    n_monitor: int = 16,
    shortlist: int = 384,
    threshold: float | None = None,
    max_similarity: float = 0.995,
    drop_recognised: bool = False,
    batch_size: int = 64,
    cache: str | os.PathLike[str] | None = None,
    search: Literal["exact", "faiss"] = "exact",
    features: Tensor | None = None,
) -> Anchors:
    """Chooses proxy anchors: projector cosine shortens the list, the model's own likelihood of the name decides.

    Where a sample says that more images which the cosine left out are likelier than the last that would be chosen than
    are chosen in all, the cosine tells too little, and the likelihood makes the short list of all images at hand.

    Source: TPAS of SPACE, arXiv 2606.09868; the second stage is ours (see docs/method.md).

    Args:
        model: the vision-language model, before any erasure.
        processor: the model's own.
        concept: what to erase.
        public_images: as for `load_public_images`, or what `index_images` returned. Only pictures that are in memory
            already are held there; of any other source, the short list and a sample are read when they are needed.
        n_anchors: how many anchors to choose.
        n_monitor: how many equally high images to keep out of training.
        shortlist: how many images the cosine may let pass. It sets the threshold from the set's own distribution.
        threshold: a fixed projector cosine instead, which is never overruled. Cosines do not carry over from one model
            to another.
        max_similarity: of two images whose centred projector features are more alike, only the likelier is chosen.
        drop_recognised: leave out images that the model calls by the name outright: they may show the concept.
        batch_size: images or prompts at a time.
        cache: folder for the projector features, so that they are computed once for any number of concepts.
        search: "exact", or "faiss" for more than several million images; see `anchors.approximate`.
        features: `(n_images, d)`, what `vlm.image_features` gives for pictures in memory, if that is known already.

    Returns:
        The anchors with all scores.

    Raises:
        ValueError: an argument is out of range, or (`TooFewAnchors`) too few images pass.
        TypeError: the model cannot be asked about images.
    """
    concept = Concept.of(concept)
    if n_anchors < MIN_ANCHORS:
        raise ValueError(
            f"`n_anchors` must be at least {MIN_ANCHORS}; got {n_anchors}. A single anchor overwrites one picture, "
            "not the concept: the name goes and its relatives go with it. Ask for 16 or more."
        )
    if n_monitor < 1 or shortlist < n_anchors + n_monitor:
        raise ValueError(
            f"`shortlist` (={shortlist}) must hold `n_anchors` (={n_anchors}) and `n_monitor` (={n_monitor}, "
            "at least 1)."
        )
    if search not in ("exact", "faiss"):
        raise ValueError(f'`search` must be "exact" or "faiss"; got {search!r}.')
    whole = None
    if cache is None and search == "exact" and in_memory(public_images):
        public = load_public_images(public_images)
        if features is None:
            features = image_features(model, processor, public.images, batch_size=batch_size)
        centred = features - features.mean(0)
        cosine = projector_cosine(features, concept_embedding(model, processor, concept))
    else:
        index = index_images(model, processor, public_images, cache, batch_size=batch_size)
        direction = concept_embedding(model, processor, concept)
        public, whole = _at_hand(index, direction, shortlist, search)
        places = range(len(public)) if whole is None else whole.places
        centred = index.rows(places) - index.mean
        cosine = cosines(index, places, direction)
    fixed = threshold is not None
    if threshold is None:
        threshold = float(cosine.topk(min(shortlist, len(public))).values[-1])
    passed = [i for i in cosine.argsort(descending=True).tolist() if cosine[i] >= threshold][:shortlist]
    likelihood = torch.full((len(public),), torch.nan)

    def ask(among: Sequence[int]) -> None:
        images = public.take(among).images
        likelihood[among] = name_likelihood(model, processor, concept, images, batch_size=batch_size)

    if passed:
        ask(passed)
    listed_by: Literal["cosine", "likelihood"] = "cosine"
    rest = sorted({*range(len(public))} - {*passed})
    if rest and not fixed:
        sample = random.Random(0).sample(rest, min(_SAMPLE, len(rest)))
        ask(sample)
        last = likelihood[passed].topk(min(n_anchors + n_monitor, len(passed))).values[-1]
        if float((likelihood[sample] > last).float().mean()) * len(rest) > n_anchors + n_monitor:
            ask(sorted({*rest} - {*sample}))
            passed = likelihood.topk(len(passed)).indices.tolist()
            threshold, listed_by = float(cosine[passed].min()), "likelihood"
        likelihood[sorted({*range(len(public))} - {*passed})] = torch.nan
    ranked = sorted(passed, key=lambda i: -likelihood[i].item())
    recognised: tuple[int, ...] = ()
    if drop_recognised:
        recognised = _recognised(model, processor, concept, public, ranked, batch_size)
        ranked = [i for i in ranked if i not in recognised]
    # of a small set half stays out: it is what the model is held to
    most = min(n_anchors + n_monitor, max(MIN_ANCHORS + 1, len(public) // 2))
    distinct = _distinct(ranked, centred, public, max_similarity, most)
    if len(distinct) < MIN_ANCHORS + 1:
        n_searched = len(public) if whole is None else whole.images
        best = f"{float(cosine.max()):.3f}" if len(cosine) else "none"
        dropped = f", {len(recognised)} were dropped as recognised" if recognised else ""
        raise TooFewAnchors(
            f"`public_images` gave {len(distinct)} usable anchors of {n_searched} images, and at least "
            f"{MIN_ANCHORS + 1} are needed (one is kept out of training): {len(passed)} reached the threshold "
            f"{threshold:.3f}{dropped}; the best score seen is {best}. Lower `threshold` or leave it out, or give "
            "more images of things that look like the concept."
        )
    # every fourth goes to the monitor, so that it spans the same range of scores as the anchors do
    n_held = max(1, min(n_monitor, len(distinct) // 4))
    monitor = distinct[1 :: max(1, len(distinct) // n_held)][:n_held]
    chosen = [i for i in distinct if i not in monitor][:n_anchors]
    return Anchors(
        concept,
        public,
        tuple(chosen),
        tuple(monitor),
        cosine,
        likelihood,
        threshold,
        recognised,
        whole,
        listed_by,
    )


def in_memory(public_images: Any) -> bool:
    """Whether pictures are held by the caller; files and data sets are read as they are needed."""
    read = (str, Path, ImageSource, FeatureIndex)
    return not isinstance(public_images, read) and not hasattr(public_images, "column_names")


def _at_hand(
    index: FeatureIndex, direction: Tensor, shortlist: int, search: Literal["exact", "faiss"]
) -> tuple[PublicImages, Whole | None]:
    """The nearest images and a random sample of all others; of a small set all."""
    whole = None
    places: Sequence[int] = range(len(index))
    if len(index) > OTHERS + shortlist or search == "faiss":
        find = nearest if search == "exact" else approximately_nearest
        found = find(index, direction, shortlist)
        others = random.Random(0).sample(places, min(OTHERS, len(index)))
        places = sorted({*found.places, *others})
        whole = Whole(len(index), tuple(places), found.counts)
    return _public(index.entries(places), index.source, index.skipped), whole


def _named(public_images: Any, ids: set[str]) -> PublicImages:
    """The entries of a source that have these ids."""
    source = public_images.source if isinstance(public_images, FeatureIndex) else image_source(public_images)
    return _public([entry for entry in source.entries() if entry[0] in ids], source)


def _public(entries: Sequence[Entry], source: ImageSource, skipped: tuple[tuple[str, str], ...] = ()) -> PublicImages:
    images = Undecoded([entry for _, entry in entries])
    return PublicImages(images, tuple(name for name, _ in entries), skipped, source.dataset, source.split)


def _recognised(
    model: nn.Module, processor: Any, concept: Concept, public: PublicImages, among: list[int], batch_size: int
) -> tuple[int, ...]:
    prompts = [Prompt(question, image) for image in public.take(among).images for question in concept.questions]
    told = generate(model, processor, prompts, batch_size=batch_size)
    n = len(concept.questions)
    return tuple(
        i for place, i in enumerate(among) if any(map(concept.mentioned_in, told[place * n : (place + 1) * n]))
    )


def _distinct(ranked: list[int], centred: Tensor, public: PublicImages, limit: float, n_images: int) -> list[int]:
    """The first `n_images` of `ranked` that are no copies and not too alike."""
    unit = F.normalize(centred, dim=1)
    chosen: list[int] = []
    seen: set[str] = set()
    for index in ranked:
        key = content_key(public.images[index])
        if key in seen or (chosen and float((unit[chosen] @ unit[index]).max()) > limit):
            continue
        chosen.append(index)
        seen.add(key)
        if len(chosen) == n_images:
            break
    return chosen
