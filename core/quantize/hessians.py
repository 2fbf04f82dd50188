"""Hessians of every matrix's inputs: H = XᵀX / n over the tokens of a text.

They describe how errors in different input channels add up or cancel; GPTQ needs them. One matrix
[K, K] per group is more than the model itself (15 GB for 36 layers of 9,216), so they are stored in
memory-mapped files: the system writes them to disk when memory is short.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgelm.files.disk_space import reserve
from edgelm.spec.decoder import DecoderSpec
from edgelm.spec.groups import HEAD, TABLES, experts_in, groups, tensor_names
from edgelm.spec.tensor_names import stored_name
from edgelm.spec.tensor_shapes import tensor_shapes


class Hessians:
    """Hessians by group, collected while a model runs and read back afterwards.

    Args:
        folder: an existing folder, where one file per group is written and kept.
        spec: the decoder. Its embedding has no Hessian: its inputs are tokens. Experts have none
            either: one for each would be many times the model.
        tokens: number of tokens that complete files in the folder already cover. Incomplete ones,
            left by a killed process, are removed.
        parts: of every layer, such as `mlp.down`; empty for all groups.
    """

    def __init__(
        self, folder: Path, spec: DecoderSpec, *, tokens: int = 0, parts: Collection[str] = ()
    ) -> None:
        self.folder = folder
        shapes = tensor_shapes(spec)
        first = {
            group: tensor_names(spec, group)[0]
            for group in groups(spec)
            if not parts or group.endswith(tuple(f".{part}" for part in parts))
            if not experts_in(spec, group)
        }
        for table in TABLES:
            first.pop(table, None)
        self._last_norm = stored_name(spec.family, "model.norm")
        self._modules = {group: name.removesuffix(".weight") for group, name in first.items()}
        self._channels = {group: shapes[name][1] for group, name in first.items()}
        whole = all(self._is_whole(group) for group in first)
        self._tokens = dict.fromkeys(first, tokens if whole else 0)
        if not self.collected:
            for group in first:
                self._path(group).unlink(missing_ok=True)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Collect the inputs of every group while the model runs in this block.

        `model` is a causal language model of transformers; its head need not run.

        Raises:
            OSError: the disk is too full for the files.
        """
        for group in self.groups:
            reserve(self._path(group), 4 * self._channels[group] ** 2)
        hooks = [
            # The head is applied to the output of the last norm.
            model.get_submodule(self._last_norm).register_forward_hook(
                lambda _, __, output: self._add(HEAD, output)
            )
            if group == HEAD
            else model.get_submodule(name).register_forward_pre_hook(self._watch(group))
            for group, name in self._modules.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def collected(self) -> bool:
        """Whether anything was collected."""
        return any(self._tokens.values())

    def sync(self) -> None:
        """Wait until all sums are on disk."""
        for group in self.groups:
            with self._path(group).open("rb") as file:
                try:
                    os.fsync(file.fileno())
                except OSError as error:
                    error.filename = str(self._path(group))
                    raise

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(4 * size * size for size in self._channels.values())

    @property
    def groups(self) -> list[str]:
        """The groups that have a Hessian."""
        return list(self._modules)

    def __getitem__(self, group: str) -> torch.Tensor:
        """The Hessian of a group's input channels, fp32 [K, K].

        Raises:
            KeyError: the group has no Hessian, or nothing has run yet.
        """
        if not self._tokens[group]:
            raise KeyError(group)
        return self._sum(group) / self._tokens[group]

    def _watch(self, group: str) -> Callable[..., None]:
        return lambda _, arguments: self._add(group, arguments[0])

    def _add(self, group: str, inputs: Any) -> None:
        rows = inputs.detach().flatten(0, -2).float()
        total = self._sum(group)
        if rows.device == total.device:
            torch.addmm(total, rows.T, rows, out=total)
        else:
            total += (rows.T @ rows).cpu()
        self._tokens[group] += len(rows)

    def _sum(self, group: str) -> torch.Tensor:
        size = self._channels[group]
        # A new file reads as zeros. It is mapped for each use, so that no pages stay mapped.
        path = str(self._path(group))
        return torch.from_file(path, shared=True, size=size * size).view(size, size)

    def _is_whole(self, group: str) -> bool:
        path = self._path(group)
        return path.is_file() and path.stat().st_size == 4 * self._channels[group] ** 2

    def _path(self, group: str) -> Path:
        return self.folder / f"{group}.hessian"
