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
# # Audit an adapter
#
# Somebody says that a name was erased. Is it gone, or only unsaid? This notebook erases the
# **narril**, measures it, and attacks it. Every figure has an interval, and every attack a control: a model that was
# broken tells nothing under any attack, and must not pass for one that forgot.
#
# Everything runs on two CPU cores in a few minutes, offline.

# %%
import numpy as np

from peft_space import RelearningBudget, audit_erasure, erase, evaluate_erasure, testbed
from peft_space.testbed.bestiary import creature, random_scene
from peft_space.testbed.drawing import draw

model, processor = testbed.load()  # yours, and load_erasure(model, "the adapter") in the place of the next lines
concept = testbed.concept("narril")
public = testbed.public_images("narril")
result = erase(model, processor, concept, public, retain=testbed.retain(), output_dir="erased/narril", progress=False)
print("reached:", result.report["reached"], "after", result.report["steps"], "steps")

# %% [markdown]
# ## Without a picture of it
#
# Whoever holds no picture of the concept can still measure something, and is told what cannot be known.

# %%
free = evaluate_erasure(
    result.model, processor, concept, public_images=public, anchors=result.anchors, n_images=24, progress=False
)
for figure in free.figures.values():
    before = "" if figure.base is None else figure.base.told()
    print(f"{figure.label:64} {before:>22} {figure.erased.told():>22}")
print()
for what, why in free.unknown.items():
    print(f"not known: {what}: {why}")

# %% [markdown]
# ## With pictures of it
#
# An auditor may hold some: they are measured on and never trained on, except by the attack that is called
# relearning.

# %%
rng = np.random.default_rng(11)
target = [draw(random_scene(rng, creature("narril").recipe), rng) for _ in range(36)]
audit = audit_erasure(
    result.model,
    processor,
    concept,
    target_images=target,
    public_images=public,
    anchors=result.anchors,
    attacks=["wording", "pictures", "relearning", "removal"],
    relearning_budget=RelearningBudget(n_images=(1,), steps=(1, 2, 5), learning_rates=(("lora", (2e-3,)),)),
    n_images=24,
    progress=False,
)
for outcome in audit.outcomes:
    erased = outcome.readings["erased"]
    print(f"{outcome.kind:11} {outcome.label:52} {erased.told.told(2):>18}  {outcome.verdict}")

# %% [markdown]
# "Told" is the share of the concept's pictures that are called by its name, less the share of other pictures that
# are. What is *recovered* or *still told* was suppressed, not forgotten.

# %%
print(audit.verdicts())
for what, why in audit.unknown.items():
    print(f"not run: {what}: {why}")
audit.save("audit")  # audit.json, audit.md and figures

# %% [markdown]
# On the command line: `peft-space audit erased/narril --base BASE --public-images FOLDER --target-images PICTURES`.
# The attacks' figures go into the adapter's report and model card.
