"""The small convolutional network: what fine-tuning teaches without any download."""

from __future__ import annotations

from torch import Tensor, nn

from app.errors import InvalidInputError
from app.models.arch_options import SmallCnnOptions


class SmallCnn(nn.Module):
    """Convolutions, each pooled by two, and linear layers.

    The default is two convolutions and three linear layers on 32×32 RGB: LeNet-5's proportions
    (LeCun et al., 1998) with ReLU and max-pooling.

    Raises:
        InvalidInputError: ``preprocess_invalid``: the layers leave nothing of such an image.
    """

    def __init__(
        self, num_classes: int, options: SmallCnnOptions | None = None, input_px: int = 32
    ) -> None:
        super().__init__()
        options = options or SmallCnnOptions()
        padding = options.kernel_px // 2 if options.padded else 0
        layers: list[nn.Module] = []
        before, side = 3, input_px
        for channels in options.channels:
            layers.append(nn.Conv2d(before, channels, options.kernel_px, padding=padding))
            if options.batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            before, side = channels, (side + 2 * padding - options.kernel_px + 1) // 2
        if side < 1:
            raise InvalidInputError(
                f"nothing of an image of {input_px} pixels is left behind "
                f"{len(options.channels)} convolutions of kernel_px {options.kernel_px}; take "
                "larger images, fewer channels, or padded",
                code="preprocess_invalid",
            )
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten())
        before *= side * side
        for width in options.hidden:
            if options.dropout:
                self.classifier.append(nn.Dropout(options.dropout))
            self.classifier.append(nn.Linear(before, width))
            self.classifier.append(nn.ReLU())
            before = width
        if options.dropout:
            self.classifier.append(nn.Dropout(options.dropout))
        self.classifier.append(nn.Linear(before, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes] of images [n, 3, h, w]."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
