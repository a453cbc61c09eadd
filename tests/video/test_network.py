"""The network that looks at frames, against torchvision's own."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, resnet18, resnet50

from pipelines.data import memory
from pipelines.errors import SkipRNNError
from pipelines.video.decode import Clip, Decoded, prepare
from pipelines.video.network import _without_tf32, load_network
from tests.gpu import on_gpu, waits_for_a_gpu


def frames(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 240, 320, 3), dtype=np.uint8)


def clip_of(pictures, size=256):
    cut = torch.stack([prepare(picture, size) for picture in pictures])
    return Clip(cut, torch.arange(len(cut)), Decoded("ok", len(cut), 0, 0, ""))


@torch.inference_mode()
def torchvision_features(pictures, seed):
    torch.manual_seed(seed)
    network = resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms()
    return torch.cat([network(transform(torch.from_numpy(picture).permute(2, 0, 1))[None]) for picture in pictures])


def test_float32_features_are_those_of_torchvision_frame_by_frame():
    pictures = frames(5)
    network, origin = load_network("resnet50", "random:3", precision="float32")
    torch.testing.assert_close(
        network.of_clip(clip_of(pictures), batch_size=2), torchvision_features(pictures, 3), rtol=1e-3, atol=1e-5
    )
    assert network.width == 2048
    assert origin.attributes()["frame_cost"] == 3.8e9


def test_bfloat16_features_are_close():
    pictures = frames(1)  # CPUs without instructions for it take seconds for each
    network, _ = load_network("resnet50", "random:3", precision="bfloat16")
    expected = torchvision_features(pictures, 3)
    got = network.of_clip(clip_of(pictures), batch_size=3)
    assert ((got - expected).norm(dim=1) / expected.norm(dim=1)).max() < 0.02


def test_steps_that_share_a_frame_share_its_features():
    network, _ = load_network("resnet18", "random:0")
    clip = clip_of(frames(2))
    clip = Clip(clip.frames, torch.tensor([0, 0, 1, 1, 1]), clip.about)
    features = network.of_clip(clip, batch_size=8)
    assert features.shape == (5, 512)
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[1], features[2])


def test_tensorfloat32_is_off_for_float32_on_a_gpu_and_then_as_before():
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    with _without_tf32():
        assert convolutions.fp32_precision == "ieee"
    assert convolutions.fp32_precision == before


@on_gpu
@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_features_of_a_gpu_are_those_of_the_cpu(precision, apart):
    clip = clip_of(frames(5))
    network, origin = load_network("resnet50", "random:3", precision=precision, device="cuda")
    expected = load_network("resnet50", "random:3", precision="float32")[0].of_clip(clip, 2)
    assert origin.precision == precision
    waiting = []
    for _ in range(2):  # the first call sets up
        begun = []
        waiting = waits_for_a_gpu(lambda: begun.append(network.begin(clip, 2)))  # noqa: B023
    assert waiting == []
    assert ((begun[0]() - expected).norm(dim=1) / expected.norm(dim=1)).max() < apart


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    state = resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "weights.safetensors")
    save_file({k: v for k, v in state.items() if "fc" not in k}, tmp_path / "headless.safetensors")
    return tmp_path


def test_weights_are_told_by_their_tensors_whatever_file_they_come_in(weights):
    names = ["weights.pth", "wrapped.pth", "weights.safetensors", "headless.safetensors"]
    loaded = [load_network("resnet18", str(weights / name)) for name in names]
    assert len({origin.weights_sha256 for _, origin in loaded}) == 1
    assert [origin.weights for _, origin in loaded] == [str(weights / name) for name in names]
    clip = clip_of(frames(1))
    assert len({tuple(network.of_clip(clip, 1)[0].tolist()) for network, _ in loaded}) == 1
    other = load_network("resnet18", "random:6")[1]
    assert other.weights_sha256 != loaded[0][1].weights_sha256


def test_files_that_torchvision_named_are_known_by_their_digest(weights, monkeypatch):
    import hashlib

    from torchvision.models import ResNet18_Weights

    path = weights / "renamed.pth"
    path.write_bytes((weights / "weights.pth").read_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    url = f"https://example.org/resnet18-{digest}.pth"
    monkeypatch.setattr(type(ResNet18_Weights.IMAGENET1K_V1), "url", property(lambda self: url), raising=False)
    assert load_network("resnet18", str(path))[1].weights == "imagenet1k_v1"


def test_named_weights_come_from_torchvision(weights, monkeypatch):
    from torchvision.models._api import WeightsEnum

    calls = []

    def get_state_dict(self, *args, **kwargs):
        calls.append(kwargs)
        return torch.load(weights / "weights.pth", weights_only=True)

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    _, origin = load_network("resnet18", "imagenet1k_v1")
    assert origin.weights == "imagenet1k_v1"
    assert calls[0]["check_hash"]
    assert calls[0]["weights_only"]


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    from torchvision.models._api import WeightsEnum

    def get_state_dict(self, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(SkipRNNError, match=r"cannot download .*resnet50-11ad3fa6.*no network.*--weights"):
        load_network("resnet50", "imagenet1k_v2")


def test_the_second_weights_want_larger_frames(weights, monkeypatch):
    from torchvision.models._api import WeightsEnum

    torch.manual_seed(0)
    state = resnet50(weights=None).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: state)
    assert load_network("resnet50", "imagenet1k_v1")[1].resize == 256
    assert load_network("resnet50", "imagenet1k_v2")[1].resize == 232


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_no_code_is_loaded_from_weights(tmp_path, capsys):
    path = tmp_path / "harmful.pth"
    torch.save({"conv1.weight": Harmful()}, path)
    with pytest.raises(SkipRNNError, match="not a file of tensors"):
        load_network("resnet18", str(path))
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(SkipRNNError, match="not a file of tensors"):
        load_network("resnet18", str(path))
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file or directory; name imagenet1k_v1"),
        (b"", "cannot read .*not a file of tensors"),
        (b"text", "cannot read .*not a file of tensors"),
        ("pipe", "it is a pipe or a device, not a file; name imagenet1k_v1"),
        ("folder", "it is a folder, not a file; name imagenet1k_v1"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_without_weights_are_refused(tmp_path, content, message, suffix):
    path = tmp_path / f"weights{suffix}"
    if content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SkipRNNError, match=message):
        load_network("resnet18", str(path))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(64).to_sparse(),
        torch.zeros(64, dtype=torch.complex64),
        torch.zeros(64, device="meta"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(weights, tensor):
    state = torch.load(weights / "weights.pth", weights_only=True)
    torch.save({**state, "bn1.weight": tensor}, weights / "odd.pth")
    with pytest.raises(SkipRNNError, match=r"odd.pth holds no tensors by name"):
        load_network("resnet18", str(weights / "odd.pth"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_weights_larger_than_memory_are_refused(weights, monkeypatch, name):
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    with pytest.raises(SkipRNNError, match=f"{name} takes 46.* MB of memory, and 1 MB are free"):
        load_network("resnet18", str(weights / name))


def test_weights_that_unfold_are_measured_unfolded(weights, monkeypatch):
    with zipfile.ZipFile(weights / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**8))
    monkeypatch.setattr(memory, "available", lambda: 10**7)
    with pytest.raises(SkipRNNError, match=r"bomb.pth takes 100 MB of memory"):
        load_network("resnet18", str(weights / "bomb.pth"))


def test_damaged_weights_in_torchvision_s_folder_are_named(monkeypatch):
    from torchvision.models._api import WeightsEnum

    def get_state_dict(self, *args, **kwargs):
        raise pickle.UnpicklingError("half a file")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    with pytest.raises(SkipRNNError, match=r"cannot download .*half a file.*--weights"):
        load_network("resnet50", "imagenet1k_v2")


def test_half_precision_weights_are_read(weights):
    state = torch.load(weights / "weights.pth", weights_only=True)
    torch.save({k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}, weights / "half.pth")
    network, _ = load_network("resnet18", str(weights / "half.pth"))
    assert torch.isfinite(network.of_clip(clip_of(frames(1)), 1)).all()


@pytest.mark.parametrize("seed", ["abc", "", "9" * 5000])
def test_random_weights_need_a_seed(seed):
    with pytest.raises(SkipRNNError, match=f"need a seed, such as random:0, got random:{seed[:5]}"):
        load_network("resnet18", f"random:{seed}")


def test_random_weights_leave_the_caller_s_draws_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    network, _ = load_network("resnet18", "random:0")
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(0)
    assert torch.equal(network.trunk.conv1.weight, resnet18(weights=None).conv1.weight)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(SkipRNNError, match="are not of resnet34"):
        load_network("resnet34", str(weights / "weights.pth"))


def test_other_weights_than_a_run_s_are_refused(weights):
    _, origin = load_network("resnet18", "random:1")
    load_network("resnet18", "random:1", origin=origin)
    with pytest.raises(SkipRNNError, match="not those whose features the run was trained on"):
        load_network("resnet18", str(weights / "weights.pth"), origin=origin)
