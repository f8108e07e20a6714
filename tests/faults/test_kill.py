"""Killed without a word at any moment, the same command ends as if nothing had happened."""

import time
import zlib

import numpy as np
from faulty import STAGES, each, snapshot, visible

# a stage, at changes of its files drawn with a fixed seed; one more falls at a moment of the clock
KILLS = 3


@each(STAGES)
def test_killed_again_and_again_it_leaves_what_an_undisturbed_run_leaves(stage, tree, request):
    draw = np.random.default_rng(zlib.crc32(request.node.callspec.id.encode()))
    whole = visible(tree.folder) | visible(stage.after)
    kills = 0
    for moment in draw.integers(1, len(stage.changes), KILLS, endpoint=True):
        kills += tree.run(stage.arguments, "killed", int(moment)) == -9
        for name, data in visible(tree.folder).items():
            assert data == whole[name], f"{name} is half written after a kill at change {moment}"
    process = tree.start(stage.arguments)
    time.sleep(draw.uniform(0.2, 0.8) * stage.seconds)
    process.kill()
    assert kills >= KILLS // 2, "the kills came too late to prove anything"
    assert tree.run(stage.arguments) == 0, tree.said
    left = snapshot(tree.folder)
    assert set(left) == set(stage.left)
    assert [name for name in left if left[name] != stage.left[name]] == []
