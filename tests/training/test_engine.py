from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from netsmith.data.images import MemoryImages
from netsmith.data.splits import open_data
from netsmith.distributed import stopping
from netsmith.errors import NetsmithError, TrainingError
from netsmith.models import BUILDERS
from netsmith.training import checkpoint, engine
from netsmith.training.engine import TrainSettings, lr_factor
from netsmith.training.tasks import Classification

TASK = Classification(3)
evaluate = functools.partial(engine.evaluate, mean=(0.0,), std=(1.0,))  # the networks take values as they are
train = functools.partial(engine.train, mean=(0.0,), std=(1.0,))


def make_images(n=70, classes=3, seed=0, channels=1, size=8):
    """Noise with a bright stripe whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pixels = torch.randint(0, 160, (n, channels, size, size), generator=generator)
    for i, label in enumerate(labels.tolist()):
        pixels[i, :, 2 * label] += 90
    return MemoryImages(pixels.to(torch.uint8), labels, tuple("abcdefgh"[:classes]))


DATA = (make_images(), make_images(45, seed=1))


class Tiny(nn.Module):
    def __init__(self, classes=3, dropout=0.0, norm=True, channels=1, slope=1.0):
        super().__init__()
        self.slope = slope
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, bias=False), nn.BatchNorm2d(6) if norm else nn.Identity())
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(6 * 36, classes))

    def forward(self, x):
        return self.head(self.slope * self.body(x))


def make_net(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(**options)


def settings(**changes):
    return TrainSettings(**{"epochs": 4, "batch_size": 16, "lr": 0.01, **changes})


def state(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- learning, determinism --------------------------------------------------------------------------------------------


def test_training_learns_and_ends_with_the_best_epoch():
    net = make_net()
    before = evaluate(net, DATA[1], TASK)
    seen = []
    result = train(net, DATA, TASK, settings(epochs=8, lr=0.02), on_epoch=seen.append)
    assert before["accuracy"] < 0.6 < 0.9 < result.metrics["accuracy"]
    assert result.metrics["accuracy"] == max(h["accuracy"] for h in result.history)
    assert evaluate(net, DATA[1], TASK) == pytest.approx(result.metrics, rel=1e-5)
    assert seen == result.history
    assert [h["epoch"] for h in seen] == list(range(1, 9))
    assert seen[-1].keys() == {"epoch", "loss", "lr", "accuracy", "validation_loss"}
    assert seen[0]["loss"] > seen[-1]["loss"]
    assert result.images_per_second > 0


def test_the_best_epoch_is_restored_when_later_ones_are_worse():
    net = make_net()
    states = []
    # a rate that climbs to the absurd: the first epochs learn, the last ones destroy
    result = train(
        net, DATA, TASK, settings(epochs=6, lr=30.0, schedule="constant", warmup_epochs=5.9, augment=True),
        on_epoch=lambda entry: states.append(state(net)),
    )  # fmt: skip
    accuracies = [h["accuracy"] for h in result.history]
    assert result.best_epoch == 1 + accuracies.index(max(accuracies)) < 6
    assert same(state(net), states[result.best_epoch - 1])


def test_equal_seeds_give_equal_weights_and_leave_the_callers_randomness_alone():
    chosen = settings(epochs=2, augment=True, mixup=0.2, cutmix=1.0)
    nets = [make_net(dropout=0.3) for _ in range(3)]
    results = []
    for net, seed, noise in zip(nets, (0, 0, 1), (3, 4, 5), strict=True):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        results.append(train(net, DATA, TASK, chosen.model_copy(update={"seed": seed})))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(state(nets[0]), state(nets[1]))
    assert results[0].history == results[1].history
    assert not same(state(nets[0]), state(nets[2]))


# --- resume -----------------------------------------------------------------------------------------------------------

VARIANTS = {
    "sgd": {"augment": True, "schedule": "onecycle"},
    "everything": {
        "optimizer": "adamw", "lr": 0.003, "ema": 0.9, "mixup": 0.3, "cutmix": 1.0, "label_smoothing": 0.1,
        "accumulate": 2, "clip_grad": 1.0, "warmup_epochs": 1.0, "augment": True,
    },
    "bf16": {"precision": "bf16", "channels_last": True},
}  # fmt: skip


def stop_at(step):
    """Progress that is interrupted, as by Ctrl-C, once `step` batches are done."""

    def progress(what, done, total, note=""):
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_as_if_it_had_never_stopped(tmp_path, variant):
    chosen = settings(**VARIANTS[variant])
    whole = make_net(dropout=0.2)
    expected = train(whole, DATA, TASK, chosen)
    halves = make_net(dropout=0.2)
    with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 3\. '.*' keeps the best of 2 complete epochs"):
        train(halves, DATA, TASK, chosen, checkpoint_dir=tmp_path, progress=stop_at(11))
    torch.manual_seed(123)
    again = make_net(dropout=0.2)
    result = train(again, DATA, TASK, chosen, checkpoint_dir=tmp_path)
    assert result.resumed_from == 2
    assert result.history == expected.history
    assert result.best_epoch == expected.best_epoch
    assert same(state(again), state(whole))
    finished = make_net(dropout=0.2)
    result = train(finished, DATA, TASK, chosen, checkpoint_dir=tmp_path, progress=stop_at(1))
    assert result.resumed_from == 4
    assert result.history == expected.history
    assert same(state(finished), state(whole))


def test_checkpoints_hold_no_pickle_and_the_best_is_a_plain_weights_file(tmp_path):
    net = make_net()
    train(net, DATA, TASK, settings(epochs=2), checkpoint_dir=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "last.safetensors"]
    assert same(load_file(tmp_path / "best.safetensors"), state(net))
    last = load_file(tmp_path / "last.safetensors")
    assert "model.body.0.weight" in last
    assert any(k.startswith("optimizer.") and k.endswith("momentum_buffer") for k in last)


def test_resume_false_starts_again(tmp_path):
    first, second = make_net(), make_net()
    train(first, DATA, TASK, settings(epochs=2), checkpoint_dir=tmp_path)
    result = train(second, DATA, TASK, settings(epochs=2), checkpoint_dir=tmp_path, resume=False)
    assert result.resumed_from == 0
    assert same(state(first), state(second))


@pytest.mark.parametrize(
    ("net", "data", "changes", "what"),
    [
        (make_net(), DATA, {"lr": 0.02, "ema": 0.9}, r"lr: \S+ -> 0.02; ema: null -> 0.9"),
        (make_net(1), DATA, {}, r"first weights: \w{12} -> \w{12}"),
        (make_net(slope=0.5), DATA, {}, r"options or code of the network: \w{12} -> \w{12}"),
        (make_net(), (make_images(seed=5), DATA[1]), {}, "other images, network, objective or settings"),
        (make_net(), (make_images(seed=5).subset(range(40)), DATA[1]), {}, r"training images: \d+ -> 40"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, net, data, changes, what):
    train(make_net(), DATA, TASK, settings(epochs=1), checkpoint_dir=tmp_path)
    kept = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=rf"is of another run \({what}\): .* \(in Python, resume=False"):
        train(net, data, TASK, settings(epochs=1, **changes), checkpoint_dir=tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == kept


def test_a_checkpoint_of_another_number_of_processes_is_refused(tmp_path):
    """Its steps and batches are counted for as many: with more, the rest of the epoch would be skipped."""

    def stop(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_net(), DATA, TASK, settings(), checkpoint_dir=tmp_path, on_epoch=stop)
    tensors, about = checkpoint.read_state(tmp_path / "last.safetensors")
    assert about["facts"]["processes"] == 1
    about["facts"]["processes"] = 2
    checkpoint.write_state(tmp_path / "last.safetensors", tensors, about)
    message = r"is of a run of 2 processes, and this one has 1: .* go on with 2 \(torchrun --nproc_per_node 2\)"
    with pytest.raises(TrainingError, match=message):
        train(make_net(), DATA, TASK, settings(), checkpoint_dir=tmp_path)
    result = train(make_net(), DATA, TASK, settings(), checkpoint_dir=tmp_path, resume=False)
    assert (result.resumed_from, len(result.history)) == (0, 4)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(make_net(), DATA, TASK, settings(epochs=1), checkpoint_dir=tmp_path)
    whole = (tmp_path / "last.safetensors").read_bytes()
    (tmp_path / "last.safetensors").write_bytes(whole[:-200])
    with pytest.raises(TrainingError, match=r"last.safetensors' is no checkpoint .* or a damaged one"):
        train(make_net(), DATA, TASK, settings(epochs=1), checkpoint_dir=tmp_path)


@pytest.mark.slow
def test_a_killed_process_is_resumed_with_the_same_result(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nimport torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "torch.set_num_threads(1)\nimport test_engine as t\n"
        "def kill(what, done, total, note=''):\n    os._exit(9) if done == int(sys.argv[2]) else None\n"
        "net = t.make_net(dropout=0.2)\n"
        "r = t.train(net, t.DATA, t.TASK, t.settings(augment=True), checkpoint_dir=Path(sys.argv[1]), progress=kill)\n"
        "print(r.resumed_from, {k: v.sum().item() for k, v in net.state_dict().items()}, r.history)\n"
    )

    def run(folder, step):
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path / folder), str(step)],
            capture_output=True,
            text=True,
            check=False,
        )

    whole = run("whole", -1)
    assert whole.returncode == 0, whole.stderr
    assert run("killed", 7).returncode == 9
    resumed = run("killed", -1)
    assert resumed.stdout == "1" + whole.stdout[1:]


# --- frozen parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["requires_grad", "trainable"])
def test_frozen_parts_stay_as_they_are(by):
    net = make_net()
    trainable = None
    if by == "requires_grad":
        net.body.requires_grad_(False)
    else:
        trainable = lambda name, parameter: name.startswith("head")  # noqa: E731
    before, flags = state(net), [p.requires_grad for p in net.parameters()]
    train(net, DATA, TASK, settings(weight_decay=0.1), trainable=trainable)
    after = state(net)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"head.3.weight", "head.3.bias"}
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())


def test_statistics_of_frozen_parts_may_be_let_loose():
    net = make_net()
    net.body.requires_grad_(False)
    before = state(net)
    train(net, DATA, TASK, settings(frozen_statistics=False))
    assert torch.equal(before["body.0.weight"], net.body[0].weight)
    assert not torch.equal(before["body.1.running_mean"], net.body[1].running_mean)


def test_modes_are_as_before():
    net = make_net()
    net.body.eval()
    train(net, DATA, TASK, settings(epochs=1))
    assert [m.training for m in (net, net.body, net.body[1], net.head)] == [True, False, False, True]
    evaluate(net, DATA[1], TASK)
    assert [m.training for m in (net, net.body, net.body[1], net.head)] == [True, False, False, True]


# --- steps ------------------------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_large_batch():
    nets = [make_net(norm=False) for _ in range(2)]
    images = make_images(64)
    for net, size, accumulate in zip(nets, (32, 16), (1, 2), strict=True):
        train(net, (images, DATA[1]), TASK, settings(batch_size=size, accumulate=accumulate))
    for key, value in state(nets[0]).items():
        torch.testing.assert_close(value, nets[1].state_dict()[key], rtol=1e-4, atol=1e-6)


def test_one_step_is_torchs_own():
    net, twin = make_net(norm=False), make_net(norm=False)
    images = make_images(16)
    chosen = settings(epochs=1, schedule="constant", lr=0.1, weight_decay=0.01, clip_grad=0.5)
    train(net, (images, DATA[1]), TASK, chosen)
    weights = [p for p in twin.parameters() if p.ndim > 1]
    biases = [p for p in twin.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    nn.functional.cross_entropy(twin(images.images(range(16))), images.labels).backward()
    nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
    optimizer.step()
    for key, value in state(twin).items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-5, atol=1e-7)


def test_the_average_is_timms_with_warm_up(tmp_path):
    """Batch of the whole set, so one step an epoch: the average after each follows from the weights after each."""
    net = make_net()
    images = make_images(24)
    steps = []
    chosen = settings(epochs=5, batch_size=24, ema=0.7)
    train(net, (images, DATA[1]), TASK, chosen, checkpoint_dir=tmp_path, on_epoch=lambda e: steps.append(state(net)))
    average = None
    for step, weights in enumerate(steps, start=1):
        decay = 0.0 if step == 1 else min(0.7, 1 - step ** (-2 / 3))
        value = weights["head.3.weight"]
        average = value if average is None else decay * average + (1 - decay) * value
    last = load_file(tmp_path / "last.safetensors")
    torch.testing.assert_close(last["ema.head.3.weight"], average)
    torch.testing.assert_close(last["model.head.3.weight"], steps[-1]["head.3.weight"])


@pytest.mark.parametrize("steps", [7, 20, 100])
def test_onecycle_is_pytorchs(steps):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert lr_factor("onecycle", step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step + 1 < steps:
            schedule.step()


def test_cosine_is_pytorchs_after_a_linear_warm_up():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    assert [lr_factor("cosine", s, 25, 5) for s in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    for step in range(20):
        assert lr_factor("cosine", 5 + step, 25, 5) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [lr_factor("constant", s, 25, 2) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]


# --- precision and accelerate -----------------------------------------------------------------------------------------


def test_bf16_and_channels_last_leave_a_plain_float_network():
    net = make_net()
    result = train(net, DATA, TASK, settings(epochs=8, lr=0.02, precision="bf16", channels_last=True))
    assert result.metrics["accuracy"] > 0.9
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.is_contiguous() for p in net.parameters())
    assert "forward" not in vars(net)
    assert evaluate(net, DATA[1], TASK, precision="bf16")["accuracy"] > 0.9


def test_accelerates_global_state_does_not_leak():
    mine = Accelerator(cpu=True, mixed_precision="no")
    environment = dict(os.environ)
    train(make_net(), DATA, TASK, settings(epochs=1, precision="bf16"))
    evaluate(make_net(), DATA[1], TASK)
    assert dict(os.environ) == environment
    assert mine.mixed_precision == "no"
    assert mine.state.mixed_precision == "no"
    assert mine.device == torch.device("cpu")
    mine.free_memory()
    type(mine.state)._reset_state(True)
    train(make_net(), DATA, TASK, settings(epochs=1))
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    type(mine.state)._reset_state(True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of machines without a GPU")
@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"precision": "fp16"}, None, "precision 'fp16' needs a GPU: precision: auto works everywhere"),
        ({}, "cuda", "PyTorch sees no CUDA device: use --device cpu"),
    ],
)
def test_what_this_machine_cannot_do(changes, device, message):
    with pytest.raises(TrainingError, match=message):
        train(make_net(), DATA, TASK, settings(**changes), device=device)


def test_processes_that_did_not_join(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes were launched but 1 joined.* torchrun --nproc_per_node 2"):
        train(make_net(), DATA, TASK, settings())


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Two times 16 images a step are one process's 32, with batch norms and augmentation; both end with one network."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch\ntorch.set_num_threads(1)\nimport test_engine as t\n"
        "from pathlib import Path\n"
        "from safetensors.torch import save_file\n"
        "net = t.make_net()\n"
        "how = t.settings(batch_size=16, augment=True)\n"
        "r = t.train(net, (t.make_images(64), t.DATA[1]), t.TASK, how, device='cpu',\n"
        f"            checkpoint_dir=Path({str(tmp_path / 'kept')!r}))\n"
        "assert r.processes == 2, r.processes\n"
        "m = t.evaluate(net, t.DATA[1], t.TASK, device='cpu')\n"
        "save_file({**t.state(net), 'metrics': torch.tensor([m['accuracy'], m['loss'], r.metrics['accuracy']])},\n"
        f"          {str(tmp_path)!r} + '/' + os.environ['RANK'] + '.safetensors')\n"
        "if os.environ['RANK'] == '0':\n"
        "    import json\n"
        "    for entry in r.history:\n        print(json.dumps(entry), flush=True)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)
    alone = make_net()
    result = train(alone, (make_images(64), DATA[1]), TASK, settings(batch_size=32, augment=True))
    for key, value in state(alone).items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)
    assert first["metrics"][0].item() == pytest.approx(result.metrics["accuracy"])
    losses = [json.loads(text)["loss"] for text in done.stdout.splitlines() if text.startswith("{")]
    assert losses == pytest.approx([entry["loss"] for entry in result.history], rel=1e-4)
    how = settings(batch_size=16, augment=True)
    with pytest.raises(TrainingError, match="is of a run of 2 processes, and this one has 1"):
        train(make_net(), (make_images(64), DATA[1]), TASK, how, device="cpu", checkpoint_dir=tmp_path / "kept")


@pytest.fixture
def heard():
    """Signals as in a terminal: started in a shell's background, this process would ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [1, 6])
def test_a_signal_stops_within_an_epoch_which_is_done_again_and_gives_the_same(tmp_path, heard, number, at):
    def interrupted(what, done, total, note=""):
        if done == at:
            os.kill(os.getpid(), number)

    def fitted(folder, progress=None):
        net = make_net(dropout=0.2)
        result = train(net, DATA, TASK, settings(augment=True), checkpoint_dir=folder, progress=progress)
        return result, state(net)

    told = []
    with stopping.graceful(told.append), pytest.raises(stopping.Stopped, match="training stopped in epoch") as stopped:
        fitted(tmp_path / "stopped", interrupted)
    assert stopped.value.number == number
    assert told == [f"{number.name}: stopping at the next safe point. The same signal again stops at once."]
    whole, wanted = fitted(tmp_path / "whole")
    rest, got = fitted(tmp_path / "stopped")
    assert same(got, wanted)
    assert rest.history == whole.history
    assert rest.images_per_second > 0


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.graceful(lambda text: None):
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopping.asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_same_signal_again_stops_at_once(heard):
    told = []
    with stopping.graceful(told.append):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher's, after the terminal's: no second request
        assert len(told) == 1
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    stopping.safe_point()


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_what_was_kept(tmp_path):
    net = make_net(norm=False)
    before = state(net)
    with pytest.raises(TrainingError, match=r"of epoch 1 is (nan|inf) \(learning rate 1e\+20\)\. No epoch was"):
        train(net, DATA, TASK, settings(lr=1e20), checkpoint_dir=tmp_path)
    assert same(state(net), before)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_breaks_later_keeps_the_best_epoch(tmp_path):
    class Poisoned(MemoryImages):
        broken = False

        def images(self, indices):
            images = super().images(indices)
            return images * float("nan") if self.broken and len(indices) > 2 else images

    net = make_net()
    images = Poisoned(DATA[0].pixels, DATA[0].labels, DATA[0].classes)

    def poison(entry):
        images.broken = entry["epoch"] == 2

    with pytest.raises(TrainingError, match=r"loss at step 1 of 4 of epoch 3 is nan .* keeps the best of 2 complete"):
        train(net, (images, DATA[1]), TASK, settings(), checkpoint_dir=tmp_path, on_epoch=poison)
    assert same(state(net), load_file(tmp_path / "best.safetensors"))


@pytest.mark.parametrize(
    ("net", "data", "task", "message"),
    [
        (make_net(classes=4), DATA, TASK, r"outputs of shape \(2, 4\)"),
        (make_net(), DATA, Classification(4), "the data set has 3 classes, the task has 4"),
        (make_net(), (DATA[0], make_images(classes=4)), TASK, "the data set has 4 classes"),
        (make_net(channels=3), DATA, TASK, "cannot take images of shape 1x8x8: .*3 channels.*Give the data a size"),
        (make_net(), (make_images(size=9), DATA[1]), TASK, "cannot take images of shape 1x9x9"),
        (make_net(), (DATA[0].subset([]), DATA[1]), TASK, "the data set holds no image"),
        (make_net().requires_grad_(False), DATA, TASK, "no parameter of the network is trainable"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, net, data, task, message):
    with pytest.raises(TrainingError, match=message):
        train(net, data, task, settings(), checkpoint_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NetsmithError, match="file"):
        train(make_net(), DATA, TASK, settings(), checkpoint_dir=tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"lr": 0}, {"epoch": 3}, {"optimizer": "adam"}, {"ema": 1.0}, {"epochs": 2, "warmup_epochs": 2}],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValidationError, match=next(reversed(wrong))):
        TrainSettings(**wrong)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_is_the_plain_mean():
    net = make_net()
    calls = []
    result = engine.evaluate(
        net, DATA[1], TASK, preprocess=lambda x: 2 * x - 1, batch_size=7,
        progress=lambda what, done, total, note="": calls.append((what, done, total)),
    )  # fmt: skip
    net.eval()
    with torch.no_grad():
        outputs = net(2 * DATA[1].images(range(45)) - 1)
    assert result["accuracy"] == (outputs.argmax(1) == DATA[1].labels).double().mean().item()
    assert result["loss"] == pytest.approx(nn.functional.cross_entropy(outputs, DATA[1].labels).item(), rel=1e-5)
    assert calls[-1] == ("evaluation", 45, 45)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.8925), (32, 0.8890), (56, 0.8965)])
def test_the_published_checkpoints_reach_their_accuracy(shared_zoo, shared_data, depth, accuracy):
    splits = open_data(f"parquet:{shared_data / 'validation.parquet'}")
    parts = (splits.train, splits.validation, splits.test)
    whole = MemoryImages(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]), splits.classes)
    net = BUILDERS[f"cifar_resnet{depth}"]()
    net.load_state_dict(load_file(shared_zoo / f"resnet{depth}_cifar10_jpeg.safetensors"))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    result = engine.evaluate(net, whole, Classification(10), preprocess=lambda x: (x - mean) / std)
    assert result["accuracy"] == pytest.approx(accuracy, abs=1e-9)
