import pytest

from app.models.spec import ModelSpec
from worker.recognisers.cost import count_macs
from worker.recognisers.registry import default_preprocess

#: As torchvision's own documentation gives them, in billions.
PUBLISHED = {"resnet18": 1.814, "squeezenet1_0": 0.819, "vit_b_16": 17.564, "inception_v3": 5.713}


@pytest.mark.parametrize("arch", sorted(PUBLISHED))
def test_operations_of_an_image_are_those_that_were_published(arch: str) -> None:
    classes = tuple(f"class {number}" for number in range(1000))
    counted = count_macs(ModelSpec(arch, classes, default_preprocess(arch)))
    assert counted / 1e9 == pytest.approx(PUBLISHED[arch], abs=6e-4)


def test_more_classes_cost_more_by_the_last_layer_alone() -> None:
    few, many = (
        count_macs(
            ModelSpec("small_cnn", tuple("abcdefgh"[:count]), default_preprocess("small_cnn"))
        )
        for count in (2, 8)
    )
    assert many - few == 6 * 84
