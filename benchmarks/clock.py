"""Times of an operation of PyTorch, on a GPU or on the processor."""

import time

import torch


class Clock:
    """ms between two events on the GPU, or by the processor's clock. Before each operation `flush_bytes` are overwritten, which
    empties the cache."""

    def __init__(self, device, flush_bytes=0):
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(flush_bytes if self.cuda else 0, dtype=torch.uint8, device=device)

    def time(self, operation):
        self.flush.zero_()
        if not self.cuda:
            began = time.perf_counter()
            operation()
            return 1e3 * (time.perf_counter() - began)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        operation()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)
