"""One artifact that fits phone and server.

    python phone_and_server.py [FOLDER]

A module that serves and changes its size while it serves: large when there is time, small when there is not. Requests
that are running finish with the size they began with.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import half_without_retraining
import torch

import netsmith


def main(folder: Path) -> None:
    if not (folder / "any_width" / "manifest.json").exists():
        half_without_retraining.main(folder)
    model = netsmith.load(folder / "any_width", run_code=True)  # its base is built by my_net.py, which is ours
    images = torch.rand(8, 3, 32, 32)

    full = model.latency(model.widths_for(1.0), batch=8)
    least = model.latency(model.narrowest(), batch=8)
    print(f"8 images take {full:.1f} ms at full width and {least:.1f} ms at the narrowest, here")
    model.set_size(latency_ms=(full + least) / 2, batch=8)
    print(f"within {(full + least) / 2:.1f} ms: {model.size.params:,d} params, {model.size.macs:,d} multiply-adds")

    stop, answered = threading.Event(), [0, 0]

    def serve(k: int) -> None:
        with torch.no_grad():
            while not stop.is_set():
                model(images)
                answered[k] += 1

    threads = [threading.Thread(target=serve, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for ratio in (1.0, 0.5, 0.25, 0.5, 1.0) * 4:
        model.set_size(ratio)
    stop.set()
    for thread in threads:
        thread.join()
    print(f"answered {sum(answered)} requests while the size changed 20 times")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/examples"))
