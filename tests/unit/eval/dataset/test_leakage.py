"""Leakage: images and captions that two splits share."""

from eval.dataset.leakage import find_leakage
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage


def split(name: str, images: list[tuple[str, list[str], str | None, int]]) -> RetrievalSet:
    made = [ManifestImage(image, name, None, None, size, group, captions, "here") for image, captions, group, size in images]
    return RetrievalSet(made, None, source="memory", split=name)


def test_shared_images_captions_and_groups_are_counted() -> None:
    train = split("train", [("a", ["A dog."], None, 1), ("b", ["a cat"], "g", 2), ("0.jpg", ["only here"], None, 3)])
    test = split("test", [("a", ["new"], None, 1), ("c", ["a DOG", "a dog !", "newer"], "g", 4), ("0.jpg", ["newest"], None, 9)])
    found = find_leakage(test, train)
    assert (found.num_shared_images, found.num_shared_captions, found.num_shared_groups_images) == (1, 2, 1)
    assert found.example_images == ["a"] and found.example_captions == ["a DOG", "a dog !"]
    assert "test and train share 1 image(s) and 2 caption(s); 1 image(s) of test have a group that train has too" in str(found)
    assert found.as_record()["other"] == "train"


def test_nothing_shared() -> None:
    found = find_leakage(split("test", [("a", ["x"], None, 1)]), split("train", [("b", ["y"], None, 1)]))
    assert (found.num_shared_images, found.num_shared_captions, found.num_shared_groups_images) == (0, 0, 0)
    assert str(found) == "test and train share 0 image(s) and 0 caption(s)"
