"""The small convolutional network: what fine-tuning teaches without any download."""

from __future__ import annotations

from torch import Tensor, nn

#: Height and width of the input; the two pools and valid convolutions leave 5×5 of it.
INPUT_PX = 32


class SmallCnn(nn.Module):
    """Two convolutions and three linear layers on 32×32 RGB.

    LeNet-5's proportions (LeCun et al., 1998) with ReLU and max-pooling.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, 32, 32]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
