"""Work of a computation, counted in numbers instead of seconds."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Work(TorchDispatchMode):
    """Count the numbers of the largest tensor and of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for x in results if isinstance(results, tuple | list) else [results]:
            if isinstance(x, torch.Tensor):
                self.largest, self.total = max(self.largest, x.numel()), self.total + x.numel()
        return results
