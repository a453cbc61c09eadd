"""The convolutional network that turns frames into features: a ResNet from torchvision up to its average pool."""

import copy
import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model, get_model_weights

from pipelines.data import memory
from pipelines.data.doors import file_digest, opening
from pipelines.data.sequences import sent
from pipelines.errors import SkipRNNError
from pipelines.video.decode import CROP, Clip, printable

# Multiply-accumulates of a frame. Source: He et al., 2015, table 1; the paper counts with ResNet-50's.
FRAME_COST = {"resnet18": 1.8e9, "resnet34": 3.6e9, "resnet50": 3.8e9, "resnet101": 7.6e9, "resnet152": 11.3e9}
NAMED_WEIGHTS = ("imagenet1k_v1", "imagenet1k_v2")
_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
RESIZE = 256  # pixels, unless the weights say otherwise
DIGITS = 18  # of a seed, which is to fit into int64
REMEDY = "name imagenet1k_v1, imagenet1k_v2, random, or a .pth or .safetensors file of a network's tensors"


class VideoTask(Protocol):
    """What a task on videos says of their frames."""

    @property
    def name(self) -> str: ...
    @property
    def fps(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def features(self) -> int:
        """Of a frame."""

    @property
    def resize(self) -> int: ...

    def parameters(self) -> dict[str, Any]:
        """All of this, and what else the data file is to say."""


@dataclass(frozen=True)
class Origin:
    """What decides a frame's features: fields of the task ``videos``."""

    network: str
    weights: str
    weights_sha256: str  # of the tensors, whatever file they come in
    resize: int
    precision: str

    def attributes(self) -> dict[str, Any]:
        return {**asdict(self), "frame_cost": FRAME_COST[self.network]}


class FrameNetwork(nn.Module):
    """Frames (n, 3, 224, 224), uint8, to features (n, D), float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: str, state: Mapping[str, Tensor], precision: str) -> None:
        super().__init__()
        self.trunk = _filled(network, state)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])  # ImageNet's
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        self.products = getattr(torch, precision)
        for module in self.trunk.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self.products)
        self.trunk.avgpool = nn.Sequential(_ToFloat32(), nn.AdaptiveAvgPool2d(1))
        self.to(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)
        self._packed: list[nn.Module] = []  # the trunk again, as a CPU likes it, once it is used there

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": []}

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        x = (sent(frames, self.mean.device).float() / 255 - self.mean) / self.std
        if x.device.type == "cpu" and self.products == torch.float32 and _ONEDNN:
            if not self._packed:
                self._packed.append(_packed(self.trunk))
            return cast(Tensor, self._packed[0](x.to_mkldnn()).to_dense())
        with _without_tf32() if x.is_cuda else nullcontext():
            return cast(Tensor, self.trunk(x.to(self.products, memory_format=torch.channels_last)))

    def of_clip(self, clip: Clip, batch_size: int) -> Tensor:
        """The features of each step of a clip, (T, D) on the CPU."""
        return self.begin(clip, batch_size)()

    def begin(self, clip: Clip, batch_size: int) -> Callable[[], Tensor]:
        """Give a GPU the work of ``of_clip``; what is returned waits for it."""
        features = torch.cat([self(frames) for frames in torch.split(clip.frames, batch_size)])
        if features.is_cpu:
            return lambda: features[clip.places]
        here = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return here[clip.places]

        return wait

    @property
    def width(self) -> int:
        """Features of a frame."""
        features: Tensor = self(torch.zeros(1, 3, CROP, CROP, dtype=torch.uint8))
        return features.shape[1]


def _packed(trunk: nn.Module) -> nn.Module:
    """A ResNet with its batch norms folded into its convolutions, whose weights lie as oneDNN wants them."""
    trunk = copy.deepcopy(trunk)
    for block in trunk.modules():
        names = [(f"conv{n}", f"bn{n}") for n in (1, 2, 3)] if hasattr(block, "bn1") else []
        pairs = [(block, conv, norm) for conv, norm in names if hasattr(block, norm)]
        if isinstance(shortcut := getattr(block, "downsample", None), nn.Sequential):
            pairs.append((shortcut, "0", "1"))
        for holder, conv, norm in pairs:
            folded = fuse_conv_bn_eval(getattr(holder, conv), getattr(holder, norm))
            setattr(holder, conv, _PackedConvolution(folded))
            setattr(holder, norm, nn.Identity())
    return trunk


class _PackedConvolution(nn.Module):
    """A convolution of oneDNN's own tensors."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert convolution.bias is not None
        self._how = (
            tuple(map(int, convolution.padding)), convolution.stride, convolution.dilation, convolution.groups
        )  # fmt: skip
        weight = convolution.weight.detach().contiguous().to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._how)  # type: ignore[arg-type]
        self._bias = convolution.bias.detach().to_mkldnn()

    def forward(self, x: Tensor) -> Tensor:
        return torch.mkldnn_convolution(x, self._weight, self._bias, *self._how)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions of float32 that are of float32: cuDNN's are of TensorFloat-32 unless told otherwise."""
    of_convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = of_convolutions.fp32_precision
    of_convolutions.fp32_precision = "ieee"
    try:
        yield
    finally:
        of_convolutions.fp32_precision = before


class _ToFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def load_network(
    network: str = "resnet50",
    weights: str = "imagenet1k_v1",
    *,
    precision: str = "auto",
    device: torch.device | str = "cpu",
    origin: Origin | None = None,
) -> tuple[FrameNetwork, Origin]:
    """A network with its weights.

    Args:
        network: a key of FRAME_COST.
        weights: one of NAMED_WEIGHTS, which torchvision downloads and checks; ``random:SEED``; or a .pth or
            .safetensors file, from which no code is loaded.
        precision: of the products; auto is bfloat16 on CUDA and float32 on the CPU.
        device: where it is to run.
        origin: what it must be equal to.

    Raises:
        SkipRNNError: the weights cannot be had, do not fit the network, or are not those of ``origin``.
    """
    if network not in FRAME_COST:
        raise SkipRNNError(f"unknown network {network}; choose one of {', '.join(FRAME_COST)}")
    device = torch.device(device)
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    state, weights, size = _weights(network, weights)
    found = Origin(network, weights, _digest(state), size, precision)
    if origin is not None and (found.weights_sha256, found.network) != (origin.weights_sha256, origin.network):
        raise SkipRNNError(f"the weights {weights} are not those whose features the run was trained on")
    return FrameNetwork(network, state, precision).to(device), found


def _weights(network: str, weights: str) -> tuple[dict[str, Tensor], str, int]:
    """The tensors by name, what to call them, and the size of frames they want."""
    if weights.startswith("random:"):
        seed = weights.partition(":")[2]
        if not seed.isdecimal() or len(seed) > DIGITS:
            raise SkipRNNError(f"random weights need a seed, such as random:0, got {weights:.40}")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed))
            return _state(_trunk(network).state_dict()), weights, RESIZE
    named = {entry.name.lower(): entry for entry in get_model_weights(network)}
    if weights in NAMED_WEIGHTS:
        if weights not in named:
            raise SkipRNNError(f"torchvision has no weights {weights} of {network}; it has {', '.join(named)}")
        entry = named[weights]
        try:
            state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # of the network, or of whatever lies in torchvision's folder under that name
            reason = " ".join(str(error).split())[:200]
            raise SkipRNNError(
                f"cannot download the weights {weights} of {network} from {entry.url} ({reason}); fetch that file by "
                "other means and name it with --weights"
            ) from error
    else:
        path = Path(weights)
        state, digest = _read(path)
        by_digest = {entry.url.rpartition("-")[2].partition(".")[0]: name for name, entry in named.items()}
        weights = by_digest.get(digest[:8], printable(path.resolve()))  # torchvision's files bear eight digits of it
    size = named[weights].transforms().resize_size[0] if weights in named else RESIZE
    state = {name.removeprefix("module."): tensor for name, tensor in state.items() if "fc." not in name}
    try:
        _filled(network, state)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SkipRNNError(f"the weights {weights} are not of {network}: {reason}") from error
    return _state(state), weights, size


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by name, and the file's SHA-256."""
    with opening(path, "a file of tensors", REMEDY) as size, warnings.catch_warnings(action="ignore"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                memory.check_fits(sum(member.file_size for member in archive.infolist()), str(path))
        memory.check_fits(size, str(path))
        digest = file_digest(path)
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(_is_weight(*item) for item in state.items()):
        raise SkipRNNError(f"{path} holds no tensors by name; save the network's state_dict()")
    return cast("dict[str, Tensor]", state), digest


def _is_weight(name: object, value: object) -> bool:
    """Whether these are a name and plain numbers: what a file loads may be sparse, quantised or without values."""
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not (value.is_complex() or value.is_quantized or value.is_nested)
    )


def _filled(network: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The network with these tensors for its own."""
    with torch.device("meta"):
        trunk = _trunk(network)
    trunk.load_state_dict(state, assign=True)
    return trunk


def _trunk(network: str) -> nn.Module:
    trunk = get_model(network, weights=None)
    trunk.fc = nn.Identity()
    return cast(nn.Module, trunk)


def _state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in sorted(state.items())
    }


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
