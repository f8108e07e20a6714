"""The course: its topics in the order of the lecture, each a command of under a minute on a CPU."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from pipeline.console import console, table
from pipeline.course.lesson import Lesson
from pipeline.errors import InputError, nearest
from pipeline.storage import atomic_file

SIGNATURE = "python -m pipeline course"  # in every picture: no other is overwritten


class Topic(NamedTuple):
    name: str
    title: str
    module: str  # of this room; it holds a function of the topic's name

    def run(self) -> Lesson:
        """Only this topic's module is loaded: torch takes seconds, a list of topics none."""
        return getattr(
            import_module(f"pipeline.course.{self.module}"), self.name.replace("-", "_")
        )()


TOPICS = [
    Topic("least-squares", "Least squares by hand against autograd", "by_hand"),
    Topic("backpropagation", "Forward and backward by hand against loss.backward()", "by_hand"),
    Topic("svm", "A linear SVM on pixels: hinge loss, stochastic gradient descent", "pixels"),
    Topic("mlp", "A multilayer perceptron on the same pixels", "pixels"),
    Topic(
        "convolution",
        "A convolution is a sparse dense layer: 9 against 4,294,967,296 weights",
        "layers",
    ),
    Topic("pooling", "Max pooling by ReLUs: max(a, b) = a + relu(b − a)", "layers"),
    Topic("encoders", "LeNet, AlexNet, VGG, ResNet as encoders of one segmenter", "encoders"),
    Topic("windows", "Do not reason by window, reason by layer", "windows"),
    Topic("adversarial-example", "An adversarial example one can see", "attacked"),
    Topic("adversarial-training", "Adversarial training on a planted cue", "attacked"),
    Topic("polytope", "The convex outer polytope", "polytope"),
    Topic("minmax-against-relu", "MinMax against ReLU in networks of norm 1", "layers"),
    Topic("cities", "Generalisation on cities", "cities"),
]


def find(name: str) -> Topic:
    """The topic of that name. Raises InputError that names the nearest one."""
    known = {topic.name: topic for topic in TOPICS}
    if name not in known:
        near = nearest(name, known)
        raise InputError(
            f"course: no topic {name!r}; did you mean {near}? `{SIGNATURE}` lists them all"
        )
    return known[name]


def contents() -> None:
    for topic in TOPICS:
        console.print(f"{topic.name:22}{topic.title}")
    console.print(f"Each is one command: {SIGNATURE} {TOPICS[0].name}")


def teach(name: str, out: Path) -> Path:
    """Run a topic: print its numbers, write OUT/TOPIC.png and return that path. Raises InputError
    where there is no such topic, or the path holds a picture that is not the course's.
    """
    topic, path = find(name), out / f"{name}.png"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists() and SIGNATURE.encode() not in path.read_bytes()[:1000]:
        raise InputError(
            f"{path}: not a picture of the course; move it away, or choose another "
            f"folder with --out"
        )
    lesson = topic.run()
    table(
        topic.title,
        ["", "value"],
        [[what, written(value)] for what, value in lesson.numbers.items()],
    )
    with atomic_file(path) as partial:
        lesson.picture.savefig(partial, metadata={"Software": SIGNATURE})
    console.print(f"picture: {path}")
    return path


def written(value: object) -> object:
    """A number whose three decimals would be zeros, in powers of ten."""
    return f"{value:.1e}" if isinstance(value, float) and abs(value) < 5e-4 else value
