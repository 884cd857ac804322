"""Three networks from three places, trained a little on the shapes: what the other examples start from.

A network of your own (`my_net.py`), one of timm and one of torchvision, each with its weights in a local file. Yours
are trained already: then only the last `load_source` is for you.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import netsmith

HERE = Path(__file__).parent
SOURCES = {"own": f"py:{HERE / 'my_net.py'}:build", "resnet": "timm:resnet10t", "mobilenet": "torchvision:mobilenet_v2"}
# expansion, channels, repeats and stride of each stage: as it stands, it leaves one pixel of an image this small
STAGES = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 1], [6, 64, 2, 2]]
OPTIONS = {"mobilenet": {"inverted_residual_setting": STAGES}}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
IMAGES: dict[str, Any] = {"num_classes": 4, "input_size": (3, 32, 32), "mean": MEAN, "std": STD}
LEARNING_RATES = {"mobilenet": 5e-3}
TRAINING = netsmith.TrainSettings(epochs=8, batch_size=32, lr=2e-3, optimizer="adamw", seed=0)


def trained(data: netsmith.Splits, folder: Path) -> list[netsmith.Network]:
    """The zoo: trained once, then read from the weights in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = []
    for name, source in SOURCES.items():
        weights, options = folder / f"{name}.safetensors", OPTIONS.get(name)
        if not weights.exists():
            fresh = netsmith.load_source(source, pretrained=False, options=options, **IMAGES)
            task = netsmith.Classification(4)
            settings = TRAINING.model_copy(update={"lr": LEARNING_RATES.get(name, TRAINING.lr)})
            netsmith.train(fresh.model, data, task, settings, preprocess=fresh.preprocess)
            save_file(fresh.model.state_dict(), weights)
        networks.append(netsmith.load_source(f"{source}#{weights}", name=name, options=options, **IMAGES))
    return networks
