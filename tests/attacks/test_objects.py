import numpy as np

from pipeline.attacks.objects import false_by_size, recall_by_size, size_names


def test_known_buildings():
    label = np.zeros((1, 20, 20), np.uint8)
    label[0, :2, :2] = 1  # 4 pixels of 0.25 m²: 1 m²
    label[0, 5:15, 5:15] = 2  # 25 m²
    label[0, 18:, 18:] = 255
    prediction = np.zeros_like(label)
    prediction[0, 5:10, 5:15] = 1  # exactly half of the large one
    prediction[0, 0, 10:14] = 1  # invented, 1 m²
    prediction[0, 18:, 18:] = 1  # where nobody knows
    assert recall_by_size(prediction, label, 0.5, [10, 50]).tolist() == [[0, 1, 0], [1, 1, 0]]
    assert false_by_size(prediction, label, 0.5, [10, 50]).tolist() == [1, 0, 0]
    assert size_names([10, 50]) == ["<10", "10-50", ">50"]
