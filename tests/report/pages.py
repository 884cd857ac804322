"""Reads a page strictly: every element is closed in order, ids are unique, every SVG is XML."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects what the tests ask about; fails on the first element that is not well formed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"
        assert len(self.ids) == len(set(self.ids)), "an id is used twice"
        self.svgs = [
            ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>") for part in html.split("<svg")[1:]
        ]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack.pop() == tag, f"</{tag}> out of order at {self.getpos()}"

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)
        elif not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """All visible text, white space collapsed."""
        return " ".join(" ".join(self.words).split())

    def values(self) -> set[str | None]:
        """What all `<data value>` hold."""
        return {attrs.get("value") for tag, attrs in self.tags if tag == "data"}
