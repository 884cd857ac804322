"""The page: drop an image, move the slider or set a time, and see the answer, size and milliseconds change."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

from netsmith.errors import MissingDependencyError, NetsmithError, OutputError
from netsmith.formats import metric_text
from netsmith.records.morphing import by_ratio
from netsmith.search.budget import format_count
from netsmith.ui.explorer import Answer, Explorer, Rebuilt, Shape, uploaded

HOST = "127.0.0.1"
_UPLOAD = "64mb"
_BARS = 24
"""Groups drawn at most; others are counted."""
_STYLE = """
#facts p { margin: .4em 0; }
#facts b { white-space: nowrap; }
#facts .width { display: grid; grid-template-columns: minmax(6em, 14em) 1fr 6em; gap: .8em; align-items: center; }
#facts .width span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#facts .width span:last-child { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
#facts .lane { height: .7em; border-radius: .2em; background: var(--border-color-primary); }
#facts .lane span { display: block; height: 100%; border-radius: .2em; background: var(--color-accent); }
#photo img { object-fit: contain; width: 100%; height: 100%; }
#rebuilt img, #drawn img { object-fit: contain; width: 100%; image-rendering: pixelated; }
"""


def import_gradio() -> Any:
    """Gradio, without the calls home that it makes by default. Raises MissingDependencyError."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise MissingDependencyError(
            "`netsmith explore` needs gradio, which the extra `ui` brings: pip install 'netsmith[ui]'."
        ) from error
    return gradio


def free_port(port: int) -> int:
    """The port itself, or any free one for 0. Raises OutputError when it is in use or not allowed."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OutputError(
                f"port {port} of {HOST} cannot be used ({error.strerror or error}). "
                f"Choose another with --port, or --port 0 for any that is free."
            ) from error
        return int(probe.getsockname()[1])


def build_page(explorer: Explorer) -> Any:
    """The page as a gradio app, not yet served."""
    gradio = import_gradio()

    def shown(action: Callable[..., Any]) -> Callable[..., Any]:
        """A mistake of the user's becomes the page's message."""

        @wraps(action)
        def run(*arguments: Any) -> Any:
            try:
                return action(*arguments)
            except NetsmithError as error:
                raise gradio.Error(str(error), print_exception=False) from error

        return run

    def result(image: str | None, shape: Shape) -> tuple[Any, ...]:
        values, answer = _answered(explorer, image)
        return *values, described(explorer, shape, answer)

    @shown
    def at_ratio(image: str | None, ratio: float) -> tuple[Any, ...]:
        return result(image, explorer.resize(ratio))

    @shown
    def at_latency(image: str | None, milliseconds: float | None) -> tuple[Any, ...]:
        if milliseconds is None:
            raise NetsmithError("give a number of milliseconds")
        shape = explorer.within(milliseconds)
        return (*result(image, shape), shape.ratio)

    low, high = explorer.lowest, explorer.highest
    with gradio.Blocks(title=f"netsmith: {explorer.name}", analytics_enabled=False) as page:
        gradio.Markdown(f"# {escape(explorer.name)}\n\nOne artifact, any size. Drop an image, then move the slider.")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(
                    label="image",
                    type="filepath",  # decoded here, within bounds, and not by the page
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=260,
                    elem_id="photo",
                )
                ratio = gradio.Slider(
                    low,
                    high,
                    value=min(1.0, high),
                    step=0.01,
                    label="size (ratio of every width)",
                    elem_id="ratio",
                    buttons=[],  # the one to reset moves the slider and tells nobody
                )
                target = gradio.Number(
                    _rounded(explorer.milliseconds()),
                    label="or at most so many milliseconds for one image",
                    step=0.01,
                    elem_id="target",
                )
                fit = gradio.Button("find the size", elem_id="fit")
            with gradio.Column():
                answers = _answers(gradio, explorer)
                facts = gradio.HTML(described(explorer, explorer.shape(), None), elem_id="facts", padding=True)
        moved = {"inputs": [image, ratio], "outputs": [*answers, facts], "show_progress": "hidden"}
        # `input`, not `change`: a size found for a time moves the slider, which must not choose another size by that
        ratio.input(at_ratio, **moved, trigger_mode="always_last", api_name="at_ratio")
        image.change(at_ratio, **moved, api_name=False)
        asked = {"inputs": [image, target], "outputs": [*answers, facts, ratio]}
        fit.click(at_latency, **asked, api_name="at_latency")
        target.submit(at_latency, **asked, api_name=False)
    return page


def serve(explorer: Explorer, port: int, *, block: bool = True) -> str:
    """Serve the page on this machine alone; returns its address, after the server has ended if `block`."""
    gradio = import_gradio()
    chosen = free_port(port)
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build_page(explorer)
    page.queue(default_concurrency_limit=1)
    page.launch(
        server_name=HOST,
        server_port=chosen,
        share=False,
        quiet=True,
        prevent_thread_lock=not block,
        theme=theme,
        css=_STYLE,
        max_file_size=_UPLOAD,
        footer_links=["api", "settings"],
    )
    return f"http://{HOST}:{chosen}"


def _answers(gradio: Any, explorer: Explorer) -> list[Any]:
    """The fields of the page that hold what the network makes of an image."""
    if explorer.task == "classification":
        return [gradio.Label(label="prediction", num_top_classes=5, elem_id="prediction")]
    kept = {"interactive": False, "format": "png", "buttons": []}
    return [
        gradio.Image(label="the image as the network takes it; below, its reconstruction", elem_id="rebuilt", **kept),
        gradio.Image(explorer.draws(), label="drawn from random codes", elem_id="drawn", **kept),
    ]


def _answered(explorer: Explorer, image: str | None) -> tuple[list[Any], Answer | Rebuilt | None]:
    """The values of these fields at the current size, for an image that was sent or for none."""
    pixels = None if image is None else uploaded(Path(image))
    if explorer.task == "classification":
        answer = None if pixels is None else explorer.answer(pixels)
        return [None if answer is None else dict(answer.confidence)], answer
    rebuilt = None if pixels is None else explorer.rebuild(pixels)
    return [None if rebuilt is None else rebuilt.pixels, explorer.draws()], rebuilt


def described(explorer: Explorer, shape: Shape, answer: Answer | Rebuilt | None) -> str:
    """The size as HTML: numbers, and a bar for each width group."""
    time = "" if answer is None else f" &middot; <b>{_rounded(answer.milliseconds):g} ms</b> an image"
    if isinstance(answer, Rebuilt):
        time += f" &middot; <b>{metric_text('reconstruction', answer.error)}</b> mean squared error of values in 0..1"
    warning = (
        "" if shape.fitted else "<p role='status'>Outside the range that was fitted: expect a loss of accuracy.</p>"
    )
    bars = []
    for name, (width, full) in list(shape.widths.items())[:_BARS]:
        share = min(100.0, 100.0 * width / full)
        bars.append(
            f"<div class='width'><span title='{escape(name)}'>{escape(name)}</span>"
            f"<span class='lane'><span style='width:{share:.1f}%'></span></span><span>{width} of {full}</span></div>"
        )
    more = len(shape.widths) - len(bars)
    rest = f"<p>and {more} more widths</p>" if more > 0 else ""
    return (
        f"<p class='size' aria-live='polite'><b>ratio {shape.ratio:.2f}</b> &middot; "
        f"<b>{format_count(shape.params)}</b> params &middot; <b>{format_count(shape.macs)}</b> MACs{time}</p>{warning}"
        f"<p>Channels of each width group:</p>{''.join(bars)}{rest}<p>{escape(_measured(explorer))}</p>"
    )


def _rounded(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")


def _measured(explorer: Explorer) -> str:
    """The artifact's own metric, by ratio."""
    name, title = ("elbo", "ELBO") if explorer.task == "generation" else ("accuracy", "accuracy")
    values = sorted(by_ratio(explorer.measured).items(), reverse=True)
    if not values:
        return f"Its {title} was not measured."
    known = ", ".join(f"{metric_text(name, value, explorer.images)} at {ratio:g}" for ratio, value in values)
    unit = " (nats a number of the image)" if name == "elbo" else ""
    return f"{title[0].upper()}{title[1:]} measured on test images{unit}: {known}."
