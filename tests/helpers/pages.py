"""The documentation as tests read it: pages, headings, links, blocks of code, tables."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclasses.dataclass(frozen=True)
class Block:
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Page:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The page without its blocks of code."""
        return _FENCED.sub("", self.text)

    def blocks(self, language: str) -> list[Block]:
        return [
            Block(found, text) for _, found, text in _FENCED.findall(self.text) if found == language
        ]

    def commands(self) -> Iterator[str]:
        """Lines of the shell, those that are continued in one piece."""
        for block in [*self.blocks("console"), *self.blocks("sh")]:
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                if block.language == "sh" or line.startswith("$ "):
                    yield line.removeprefix("$ ").split("  #")[0].strip()

    def links(self) -> list[str]:
        return _LINK.findall(self.prose)

    def headings(self) -> list[str]:
        return re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)

    def anchors(self) -> set[str]:
        """As GitHub makes them of headings."""
        return {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in self.headings()
        }

    def section(self, heading: str) -> str:
        """What stands under a heading, up to the next of the same or a higher rank."""
        found = re.search(
            rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)",
            self.text,
            re.MULTILINE | re.DOTALL,
        )
        assert found, f"{self.name} has no heading {heading!r}"
        return found[2]

    def rows(self, heading: str | None = None) -> list[list[str]]:
        """The cells of its tables, titles and lines left out."""
        text = self.section(heading) if heading else self.prose
        return [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
            for line in text.splitlines()
            if line.startswith("|") and not set(line) <= set("| -")
        ]


def all_pages() -> list[Page]:
    docs = sorted((ROOT / "docs").rglob("*.md"))
    return [Page(ROOT / name) for name in FRONT] + [Page(path) for path in docs]


def page(name: str) -> Page:
    return Page(ROOT / name)
