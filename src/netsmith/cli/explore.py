"""A page on this machine (127.0.0.1) on which a morphable artifact changes its size while it answers.

Drop an image, move the slider or give a number of milliseconds: prediction, confidence, params, MACs and time follow.
Of an autoencoder it shows the image's reconstruction and what is drawn at that size. It needs the extra `ui` (gradio).
Nothing leaves the machine. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse

from .options import add_common
from .session import Session

SUMMARY = "a local page: an image, a slider over the size, the answer"
EXAMPLES = (
    ("netsmith explore runs/any_width/artifact", "then open the address that it prints"),
    ("netsmith explore runs/any_width/artifact --port 0", "on any free port"),
)
PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the artifact and the port."""
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of a morphable artifact, or hf:ORG/NAME")
    parser.add_argument(
        "--port", type=_port, default=PORT, metavar="N", help=f"of 127.0.0.1 (default: {PORT}; 0: any free one)"
    )
    add_common(parser, device=False)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Load, serve until interrupted."""
    from netsmith.ui.explorer import Explorer
    from netsmith.ui.page import free_port, import_gradio, serve

    from .networks import artifact_folder

    import_gradio()
    port = free_port(arguments.port)
    explorer = Explorer(artifact_folder(arguments.artifact))
    session.console.result(f"open http://127.0.0.1:{port} (Ctrl-C ends it)")
    serve(explorer, port)
    return 0


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text}")
    return value
