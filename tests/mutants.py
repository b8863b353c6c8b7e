"""What the oracles share: a distance, drawn weights, and planted mistakes that prove an oracle would notice one."""

import inspect
import textwrap
import types

import numpy as np
import torch

TOLERANCE = 1e-10  # within which model and oracle agree in float64, relative and absolute
NOTICEABLE = 1e-6  # a planted mistake has to stand out by far more than rounding


def edited(original, *edits):
    """A copy of a module or function, made of its source with each `(old, new)` replaced. `old` must occur once."""
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {original.__name__}"
        source = source.replace(old, new)
    code = compile(source, f"<{original.__name__}, edited>", "exec")
    if isinstance(original, types.ModuleType):
        copy = types.ModuleType(original.__name__)
        copy.__package__ = original.__package__  # for its relative imports
        exec(code, copy.__dict__)
        return copy
    names = dict(inspect.unwrap(original).__globals__)
    exec(code, names)
    return names[original.__name__]


def distance(ours, expected):
    """The largest |ours - expected| / (1 + |expected|) over two lists of arrays; infinite where something is nan."""
    ours, expected = ([np.asarray(array) for array in arrays] for arrays in (ours, expected))
    assert [array.shape for array in ours] == [array.shape for array in expected]
    worst = max((abs(a - b) / (1 + abs(b))).max() for a, b in zip(ours, expected, strict=True))
    return np.inf if np.isnan(worst) else worst


def drawn(network, seed=0):
    """`network` in float64 with all its weights and statistics drawn, so that none is 0 or 1 and hides its term."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.double().state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif name.endswith(
            ("weight", "running_var")
        ):  # of norms: positive, or the ReLU after them kills whole channels
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.5, generator=generator)
    return network


def weights_of(network):
    """The state dict as NumPy arrays of their own, which no later training step changes."""
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def under(weights, prefix):
    """The weights of the part called `prefix`, by their names within it."""
    return {name.removeprefix(prefix + "."): array for name, array in weights.items() if name.startswith(prefix + ".")}


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def real_rows(padded, mask):
    """(N, L, C) and its mask (N, L) to N arrays (L_n, C) without padding."""
    return [rows[real].detach().numpy() for rows, real in zip(padded, mask, strict=True)]


def first_words(num_words, length):
    """The mask (N, T) of expressions padded on the right."""
    return torch.arange(length) < torch.tensor(num_words)[:, None]
