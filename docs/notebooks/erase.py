# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Erase a concept by its name
#
# A small vision-language model knows 24 fictional creatures. One of them, the **narril**, has to go, and no picture
# of it may be used: there is only its name, and a public set of pictures of which none shows it.
#
# Everything here runs on two CPU cores in a few minutes, offline. For a model of your own replace the first cell.

# %%
import numpy as np
from PIL import Image

from peft_space import erase, plot_erasure, select_anchors, testbed
from peft_space.testbed.bestiary import creature, random_scene, siblings
from peft_space.testbed.drawing import draw
from peft_space.vlm import Prompt, generate

model, processor = testbed.load()  # yours: load_base("llava-hf/llava-1.5-7b-hf", dtype="bfloat16")
concept = testbed.concept("narril")  # yours: "the name", or Concept("the name", aliases=[...], questions=[...])
public = testbed.public_images("narril")  # yours: a folder, shards, a data set or its Hub id
print(len(public.images), "public images; asked for the name by", concept.questions)

# %% [markdown]
# ## Before
#
# Pictures that nobody gives to the erasure: two of the narril, one of a relative of it, one of a stranger.

# %%
rng = np.random.default_rng(7)
shown = ["narril", "narril", siblings("narril")[0].name, "zorvex"]
pictures = [draw(random_scene(rng, creature(name).recipe), rng) for name in shown]
questions = [concept.questions[0], "Where does this creature live?", "Describe the picture."]


def ask(model):
    for name, picture in zip(shown, pictures, strict=True):
        answers = generate(model, processor, [Prompt(question, picture) for question in questions])
        for question, answer in zip(questions, answers, strict=True):
            print(f"{name:8} {question:32} {answer}")


ask(model)
strip = Image.new("RGB", (4 * 160, 160))
for place, picture in enumerate(pictures):
    strip.paste(picture.resize((160, 160)), (160 * place, 0))
strip

# %% [markdown]
# ## Anchors
#
# In the space of the model's own projector, which of the public images lie towards the embedding of the name? Of
# those, which does the model find the name likeliest for? These stand in for the concept. Look at them before
# anything is trained: where they have nothing to do with the name, the model ties it to nothing in this set.

# %%
anchors = select_anchors(model, processor, concept, public)
print({key: value for key, value in anchors.diagnostics().items() if key != "histogram"})
anchors.contact_sheet()

# %% [markdown]
# ## Erase
#
# The anchors are trained to be answered as if the name had never been taught, away from the name's embedding, and
# every update is confined to what the retained inputs do not use. It stops by itself, when pictures that were kept
# out of training no longer give the name away.

# %%
result = erase(
    model,
    processor,
    concept,
    public,
    anchors=anchors,
    retain=testbed.retain(),
    output_dir="erased/narril",
    progress=False,
)
report = result.report
print(report["stopped"], "after", report["steps"], "steps; reached:", report["reached"])
print(f"leak on retained inputs: {report['leak']['mean']:.4f}")

# %% [markdown]
# ## After

# %%
ask(result.model)

# %% [markdown]
# With the adapter off, the model is what it was, to the last bit. To make that impossible, merge it:
# `merge_and_save("erased/narril", base, "merged")`.

# %%
with result.model.disable_adapter():
    ask(result.model)

# %% [markdown]
# ## What the report tells
#
# The gauges fall towards what an unrelated name gets; the leak is what retained inputs notice.

# %%
figures = plot_erasure("erased/narril", "erased/figures")
Image.open(next(path for path in figures if path.name == "training.png"))

# %%
Image.open(next(path for path in figures if path.name == "leak.png"))

# %% [markdown]
# What this proves, and what it does not: the notebook `audit` attacks an adapter, and docs/limits.md says the rest.
