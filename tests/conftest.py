"""Shapes and types of every annotated function are checked while the tests run; two cores are shared fairly."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from browser import Browser, BrowserError, find_browser

install_import_hook("netsmith", "beartype.beartype")

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture
def shared_data() -> Path:
    """Folder with the CIFAR-10 parquet files."""
    path = SHARED / "data" / "cifar10_jpeg"
    if not path.is_dir():
        pytest.skip(f"needs the CIFAR-10 images in {path}")
    return path


@pytest.fixture
def shared_zoo() -> Path:
    """Folder with the trained CIFAR ResNets."""
    path = SHARED / "zoo"
    if not path.is_dir():
        pytest.skip(f"needs the trained networks in {path}")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed and logged is sent between processes as UTF-8, and some tests name files otherwise."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium for all pages of a session."""
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium or Chrome is installed: the pages are not tried in a browser")
    started = Browser(path)
    try:
        started.call("Browser.getVersion")
    except BrowserError as error:
        started.close()
        pytest.skip(f"{path} does not start, so the pages are not tried in a browser: {error}")
    yield started
    started.close()
