"""Training steps of the same network in PyTorch, for :mod:`benchmarks.alternating`.

float32, channels last.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.alternating import Measurement, peak_mib, serve
from tests.peers.networks import TorchResNet

CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--warm-up", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    net = TorchResNet("resnet50", CLASSES, 3.0).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(options.batch, 3, options.side, options.side)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (options.batch,))

    def take(steps: int, parts: bool) -> Measurement:
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            optimizer.zero_grad()
            _, logits = net(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            loss.item()
            seconds.append(time.perf_counter() - begin)
        return Measurement(seconds, peak_mib=peak_mib())

    take(options.warm_up, False)
    serve(take)


if __name__ == "__main__":
    main()
