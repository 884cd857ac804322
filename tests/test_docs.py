"""The docs stay true: every config key is documented, every page is in the index, every link leads somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import netsmith
from netsmith.cli.main import build_parser
from netsmith.config import MorphConfig, ReassembleConfig, TrainConfig
from netsmith.training.settings import TrainSettings

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name not in {"finetune", "training", "network"}:
            found += keys(inner, f"{prefix}{name}.") if name != "data" else [name]
        else:
            found.append(prefix + name)
    return found


def test_every_config_key_is_documented():
    text = (DOCS / "configuration.md").read_text()
    for model in (ReassembleConfig, MorphConfig, TrainConfig, TrainSettings):
        missing = [key for key in keys(model) if f"`{key}`" not in text]
        assert not missing, f"{model.__name__}: {missing}"


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"]
    assert sorted(next(iter(entry.values())) for entry in nav) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_picture_of_the_house_names_what_is_there():
    """In `docs/design.md` each arrow names a room and the functions of it."""
    picture = (DOCS / "design.md").read_text().partition("## The way of data")[2].partition("## ")[0]
    arrows = re.findall(r"│ (\w+) +([\w., ]+?)(?:  |\n)", picture)
    assert len(arrows) > 15
    for room, functions in arrows:
        code = "".join(file.read_text() for file in (DOCS.parent / "src" / "netsmith" / room).glob("*.py"))
        for function in functions.split(", "):
            name = function.strip().rpartition(".")[2]
            assert re.search(rf"^ *(?:def|class) {name}\b", code, re.MULTILINE), f"{room} has no {name}"


def test_every_public_name_has_its_reference():
    named = re.findall(r"^::: netsmith\.[\w.]+\.(\w+)$", (DOCS / "reference.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(netsmith.__all__)


def commands() -> list[str]:
    """Every line of a code block of README and docs that calls netsmith, without its remark."""
    found = []
    for page in (DOCS.parent / "README.md", *PAGES):
        for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found += [line.partition(" #")[0].strip() for line in block.splitlines() if line.startswith("netsmith ")]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_every_command_in_the_docs_is_one(command):
    build_parser().parse_args(shlex.split(command)[1:])


def texts() -> list[str]:
    """The strings in the sources, each in one piece; what is filled in is a zero byte."""
    found = []
    for file in (DOCS.parent / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_every_refusal_that_is_explained_is_one():
    known = texts()
    rows = re.findall(r"^\| (`.*?) \| ", (DOCS / "refusals.md").read_text(), re.MULTILINE)
    assert len(rows) > 20
    for row in rows:
        for quoted in re.findall(r"`([^`]+)`", row):
            for phrase in quoted.split("..."):
                assert any(phrase.strip() in text for text in known), f"no message says '{phrase.strip()}'"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "MorphableModel" in (tmp_path / "site" / "reference" / "index.html").read_text()
