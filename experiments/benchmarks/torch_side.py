"""The train steps of `peers` in PyTorch: ``torch_side.py CASE KIND eager|compile``.

PyTorch is no dependency of this project. Give it an environment of its own:

    python3 -m venv torch-env
    torch-env/bin/pip install torch numpy --index-url https://download.pytorch.org/whl/cpu
"""

import sys
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from worker import serve


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.down = None
        if stride > 1 or before != after:
            self.down = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        """Return the block's map."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    """A CIFAR ResNet that returns logits and the second stage."""

    def __init__(self, depth: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        n = (depth - 2) // 6
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(before, after, stride),
                *(BasicBlock(after, after, 1) for _ in range(n - 1)),
            )
            for before, after, stride in stages
        )
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        """Return logits and the tapped stage."""
        x = F.relu(self.bn1(self.conv1(x)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.fc(x.mean((2, 3))), features[1]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        """Return the block's tokens."""
        b, t, w = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, w)
        x = x + self.proj(y)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer that returns logits and its last tokens."""

    def __init__(self, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 197, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        """Return logits and the normalised tokens."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0]), x


CASES = {
    "resnet": (
        (128, 32, 100),
        lambda: (ResNet(56, 100), ResNet(20, 100)),
        lambda: nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
    ),
    "vit": (
        (8, 224, 1000),
        lambda: (ViT(384, 12, 6, 1000), ViT(192, 12, 3, 1000)),
        lambda: nn.Linear(192, 384),
    ),
}
"""(batch size, image size, classes), teacher and student, and the projector."""


def build(case: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which trains that many steps."""
    (size, side, classes), networks, projector = CASES[case]
    teacher, student = networks()
    project = projector() if kind == "feature" else nn.Identity()
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(
        [*student.parameters(), *project.parameters()], lr=0.05, momentum=0.9
    )
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(size, 3, side, side)).astype(np.float32))
    label = torch.from_numpy(rng.integers(0, classes, size))

    def objective(image, label):
        logits, feature = student(image)
        loss = F.cross_entropy(logits, label)
        if kind == "ce":
            return loss
        with torch.no_grad():
            wanted, taught = teacher(image)
        log_p, q = F.log_softmax(logits / 4, 1), F.softmax(wanted / 4, 1)
        loss = 0.1 * loss + 0.9 * 16 * F.kl_div(log_p, q, reduction="batchmean")
        if kind == "feature":
            loss = loss + F.mse_loss(project(feature), taught)
        return loss

    if sys.argv[3] == "compile":
        objective = torch.compile(objective)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            objective(image, label).backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    serve(build)
