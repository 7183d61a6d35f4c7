"""The demo model and its test images: they fit each other, the claimed accuracy holds, the model can be cut."""

from __future__ import annotations

import importlib.resources

import numpy as np
import onnx
import onnxruntime

DATA = importlib.resources.files("nodes") / "demo_data"
MODEL = (DATA / "digits.onnx").read_bytes()


def load_images() -> tuple[np.ndarray, np.ndarray]:
    with (DATA / "digits_test.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["image", "label"]
        return arrays["image"], arrays["label"]


def test_images_are_frames_of_the_models_input() -> None:
    images, labels = load_images()
    assert (images.dtype, images.shape) == (np.float32, (360, 1, 1, 8, 8))
    assert (labels.dtype, labels.shape) == (np.int64, (360,))
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert set(labels.tolist()) == set(range(10))


def test_accuracy_through_onnx_runtime() -> None:
    images, labels = load_images()
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    [one_by_one] = session.run(["scores"], {"image": images[0]})
    [scores] = session.run(["scores"], {"image": images[:, 0]})
    np.testing.assert_allclose(one_by_one[0], scores[0], rtol=1e-4, atol=1e-5)
    assert (scores.argmax(axis=1) == labels).mean() >= 0.985


def test_model_is_small_checked_and_for_old_runtimes() -> None:
    assert len(MODEL) < 300_000
    model = onnx.load_from_string(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert [each.name for each in model.graph.input] == ["image"]
    assert [each.name for each in model.graph.output] == ["scores"]
