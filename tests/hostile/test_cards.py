"""Cards, audits and terminals show what anybody wrote as text: no mark-up, no metadata, no control comes of it."""

from __future__ import annotations

import functools
import io
import json
import re

import pytest
from huggingface_hub import ModelCard
from hypothesis import assume, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from peft_space import SpaceConfig
from peft_space.attacks import AuditReport
from peft_space.console import answers_table, facts_table, figures_table, gauges_table, reasons_table, verdict
from peft_space.evaluation import ErasureReport
from peft_space.hub.card import build_card
from peft_space.quoting import code, markdown, printable
from tests.hostile.drawing import few
from tests.hostile.targets import RECORD

READER = MarkdownIt("gfm-like", {"html": True, "linkify": False})
NASTY = (
    "a\n---\nlicense: mit\n---\n",
    "---",
    "b: c",
    "`code` ```\nimport os\n```",
    "<script>alert(1)</script></details><!-- ",
    "[link](javascript:alert(1)) ![](http://x/y.png)",
    "| a | b |\n|---|---|",
    "**bold** _low_ ~~gone~~ # head\n# head",
    "{{ 7 * 7 }}{% for x in y %}{{ config }}",
    "{name} {0} %s \\ \\| &amp; &lt;",
    "\x1b[2J\x1b]0;title\x07\x9b31m\x00\r",
    "\u202egnp.exe\u2066 \u2028 \ud800 \u200b",
    "]] [red]x[/red] [/] [link=http://x]y[/link]",
    "$x$ <https://x> http://x www.x.y @somebody",
    '") ; import os; os.system("true") #',
    "* list\n1. list\n> quote\n\n    code",
)
some_text = (
    st.sampled_from(NASTY) | st.text(max_size=20) | st.lists(st.sampled_from("`*_[]<>&|~#!\\\n-ab ")).map("".join)
)


def shape(text: str) -> list[tuple[str, str]]:
    """What a page is made of, without its words."""
    kinds = []
    for token in READER.parse(text):
        if token.type == "inline":
            # what can't stand in code as it is stands beside it
            passing = ("text", "softbreak", "code_inline")
            kinds += [(child.type, child.tag) for child in token.children if child.type not in passing]
        kinds.append((token.type, token.tag))
    return kinds


def seen(text: str) -> str:
    """What is read of one paragraph."""
    (_, inline, _) = READER.parse(text)
    assert {child.type for child in inline.children} <= {"text"}, text
    return "".join(child.content for child in inline.children)


def words(text: str) -> str:
    plain = re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", " ", text)
    return " ".join(re.sub("[\u202a-\u202e\u2066-\u2069]", "", plain).split())


@few(200)
@given(text=some_text)
def test_quoted_text_reads_as_the_text(text):
    assert " ".join(seen(f"x {markdown(text)} x").split()) == " ".join(f"x {words(text)} x".split())


@pytest.mark.parametrize("text", NASTY)
def test_quoted_text_is_one_cell_and_one_line(text):
    table = f"| a | b |\n|---|---|\n| {markdown(text)} | {code(text)} |"
    cells = [token for token in READER.parse(table) if token.type == "td_open"]
    assert len(cells) == 2 and "\n" not in markdown(text) + code(text)


@few(30)
@given(text=some_text)
def test_nothing_that_a_terminal_would_follow_is_printed(text):
    out = io.StringIO()
    console = Console(file=out, width=200, no_color=True, highlight=False)
    console.print(printable(text))
    console.print(reasons_table("what", "what", {text: text}))
    console.print(answers_table([dict.fromkeys(("shown", "question", "before", "after"), text)]))
    console.print(figures_table([{"label": text, "before": 0.5, "after": 0.5}]))
    console.print(gauges_table([{"about": text, "before": 0.5, "reference": None, "after": 0.5}]))
    console.print(verdict({"stopped": text, "steps": 3, "reached": False}))
    console.print(ErasureReport(text, (), 0, {}, {text: text}).table())
    console.print(ErasureReport(text, (), 0, {}, {text: text}).unknown_table())
    console.print(audit(text).table())
    facts = dict.fromkeys(("base", "base_revision", "text_knowledge", "stopped", "steps"), text)
    known = {"rank": 1, "alpha": 1, "targets": 1, "redacted": False, "reached": True, "leak": None}
    told = {"concept": [text], "anchors": {"images": 1, "dataset": text}, "attacks": [{"name": text}]}
    console.print(facts_table(facts | known | told))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out.getvalue())
    out.getvalue().encode()


def test_mark_up_of_a_name_is_shown():
    out = io.StringIO()
    Console(file=out, width=200).print(ErasureReport("[bold]x[/bold] [/]", (), 0, {}, {}).table())
    assert "[bold]x[/bold] [/]: what was" in out.getvalue()


def audit(text: str) -> AuditReport:
    return AuditReport(text, (text,), 0, ("base", "erased"), text, text, None, (), {text: text})


def card_of(text: str, **more) -> str:
    config = SpaceConfig(concept=["zorvex", text if text.strip() else "x"], r=2)
    config.base_model_name_or_path = more.pop("base", text)
    config.base_fingerprint = {"config": "a", "name": text, "revision": text, "weights": {}}
    record = json.loads(json.dumps(RECORD))
    del record["concept_hash"]
    record["aliases"], record["stopped"], record["reached"] = [text], text, False
    record["before"] |= {text: 0.5}
    record["after"] |= {text: 0.5}
    record["gauges"][0]["about"] = text
    record["anchor_images"] |= {"dataset": text, "split": text}
    record["attacks"] = [{"name": text, text: 0.5}]
    config.record = record | more
    return str(build_card(config, "jane/erased", with_images=True))


@functools.cache
def mild_card() -> ModelCard:
    return ModelCard(card_of("mild text"))


@few(25)
@given(text=some_text)
def test_a_card_is_made_of_the_same_things_whatever_it_quotes(text):
    # what may be the id of a repository is linked to
    assume(not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text))
    mild, nasty = mild_card(), ModelCard(card_of(text))
    assert nasty.data.to_dict().keys() == mild.data.to_dict().keys()
    for name in ("license", "base_model", "datasets", "library_name", "pipeline_tag", "tags", "model_name"):
        assert getattr(nasty.data, name, None) == getattr(mild.data, name, None)
    if words(text):
        assert shape(nasty.text) == shape(mild.text)


def test_what_is_on_the_hub_is_linked_to():
    card = ModelCard(card_of("jane/birds"))
    assert card.data.base_model == "jane/birds" and card.data.datasets == ["jane/birds"]
    assert "[jane/birds](https://huggingface.co/datasets/jane/birds)" in card.text
    assert 'from_pretrained("jane/birds", revision="jane/birds")' in card.text


def test_code_of_a_card_compiles_and_calls_nothing_else():
    text = '") ; import os; os.system("true") #\n```\n'
    blocks = [
        t.content for t in READER.parse(ModelCard(card_of(text)).text) if t.type == "fence" and t.info == "python"
    ]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
        assert "os.system" not in re.sub(r'"(\\.|[^"\\])*"', '""', block)


@few(60)
@given(text=some_text)
def test_an_audit_is_made_of_the_same_things_whatever_it_quotes(text):
    if words(text):
        assert shape(audit(text).to_markdown()) == shape(audit("mild text").to_markdown())
