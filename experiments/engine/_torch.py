"""PyTorch's ways to train the networks of `experiments.engine._peers`; imported where PyTorch is, in a process of its
own for each core, and free of JAX."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from experiments.engine._timing import Contender, Network, pace

Arrays = tuple[np.ndarray, np.ndarray]


def eager(network: Network, data: Arrays, rates: np.ndarray, batch_size: int, *, num_threads: int = 1) -> Contender:
    """One network, an operation at a time."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    inputs, labels = _placed(network, data)
    model, loss = _module(network).to(inputs.device), torch.nn.CrossEntropyLoss()
    tx = torch.optim.Adam(model.parameters(), lr=float(rates[0]))

    def steps(num_steps: int) -> None:
        for _ in range(num_steps):
            rows = torch.randint(0, len(inputs), (batch_size,), device=inputs.device)
            tx.zero_grad()
            loss(model(inputs[rows]), labels[rows]).backward()
            tx.step()

    def evaluate() -> None:
        with torch.no_grad():
            loss(model(inputs[:1000]), labels[:1000]).item()

    return Contender(1, steps, evaluate)


class EveryCore:
    """PyTorch eager in one process a core, all at once; `rate` is their sum."""

    def __init__(self, network: Network, data: Arrays, rates: np.ndarray, batch_size: int, num_processes: int) -> None:
        """Starts the processes, each with its own network."""
        self._num = num_processes
        self._pool = ProcessPoolExecutor(
            num_processes, get_context("spawn"), _start_worker, (network, data, rates, batch_size)
        )
        self.rate(0.05)

    def rate(self, seconds: float) -> float:
        """Returns steps of runs a second, of all processes together."""
        return sum(self._pool.map(_worker_rate, [seconds] * self._num))

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown()


_worker: list[Contender] = []


def _start_worker(network: Network, data: Arrays, rates: np.ndarray, batch_size: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    _worker.append(eager(network, data, rates, batch_size))


def _worker_rate(seconds: float) -> float:
    return pace(_worker[0], seconds)


def vmapped(network: Network, data: Arrays, rates: np.ndarray, batch_size: int, *, num_threads: int) -> Contender:
    """All networks in one vmapped gradient (`torch.func`), Adam written out on the stacked weights."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(0)
    inputs, labels = _placed(network, data)
    base, scales = _module(network).to(inputs.device), torch.as_tensor(rates, device=inputs.device)
    stacked, _ = stack_module_state([_module(network).to(inputs.device) for _ in rates])
    params = {name: value.detach() for name, value in stacked.items()}
    first = {name: torch.zeros_like(value) for name, value in params.items()}
    second = {name: torch.zeros_like(value) for name, value in params.items()}
    count = [0]

    def loss(params: Any, x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(functional_call(base, params, (x,)), y)

    gradients, evaluated = vmap(grad(loss), in_dims=(0, None, None)), vmap(loss, in_dims=(0, None, None))

    def steps(num_steps: int) -> None:
        for _ in range(num_steps):
            count[0] += 1
            rows = torch.randint(0, len(inputs), (batch_size,), device=inputs.device)
            correction = (1 - 0.999 ** count[0]) ** 0.5 / (1 - 0.9 ** count[0])
            for name, g in gradients(params, inputs[rows], labels[rows]).items():
                first[name].mul_(0.9).add_(g, alpha=0.1)
                second[name].mul_(0.999).addcmul_(g, g, value=0.001)
                step = scales.view(-1, *[1] * (g.ndim - 1)) * correction
                params[name] -= step * first[name] / (second[name].sqrt() + 1e-8)

    return Contender(len(rates), steps, lambda: evaluated(params, inputs[:1000], labels[:1000]).sum().item())


def _placed(network: Network, data: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with channels first, integer labels; on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, labels = (np.array(array) for array in data)
    if network.input_shape:
        inputs = np.moveaxis(inputs.reshape(len(inputs), *network.input_shape), -1, 1).copy()
    return torch.as_tensor(inputs).to(device), torch.as_tensor(labels).long().to(device)


def _module(network: Network) -> torch.nn.Module:
    activation = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[network.activation]
    num_space = max(len(network.input_shape) - 1, 1)
    convolution = (torch.nn.Conv1d, torch.nn.Conv2d)[num_space - 1]
    pooling = (torch.nn.MaxPool1d, torch.nn.MaxPool2d)[num_space - 1]
    layers: list[torch.nn.Module] = []
    channels = network.input_shape[-1] if network.input_shape else 0
    for layer in network.conv_layers:
        layers += [convolution(channels, layer.channels, layer.kernel, layer.stride, layer.padding), activation()]
        layers += [pooling(layer.pool)] if layer.pool > 1 else []
        channels = layer.channels
    layers.append(torch.nn.Flatten())
    for width in network.widths:
        layers += [torch.nn.LazyLinear(width), activation()]
    module = torch.nn.Sequential(*layers, torch.nn.LazyLinear(10))
    module(torch.zeros(1, *np.roll(network.input_shape, 1)) if network.input_shape else torch.zeros(1, network.inputs))
    return module
