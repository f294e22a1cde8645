from dataclasses import replace

import pytest

from sandboxes.placement import Candidate, Need, Overcommit, rank_nodes

OVERCOMMIT = Overcommit(cpu=4, memory=2)
NEED = Need(cpu_count=2, memory_mb=1024, disk_size_mb=1024)
EMPTY = Candidate(
    node_id="a",
    is_ready=True,
    cpu_count=4,
    memory_mb=8192,
    disk_available_mb=10_000,
    max_sandboxes=10,
    sandbox_count=0,
    allocated_cpu=0,
    allocated_memory_mb=0,
    has_warm=False,
)


def ids(candidates, need=NEED):
    return [node.node_id for node in rank_nodes(candidates, need, OVERCOMMIT)]


def test_placement_prefers_the_fullest_node_that_fits():
    half = replace(EMPTY, node_id="b", sandbox_count=5, allocated_memory_mb=8192)
    full = replace(EMPTY, node_id="c", sandbox_count=10)
    assert ids([EMPTY, half, full]) == ["b", "a"]


def test_a_warm_container_beats_a_fuller_node():
    warm = replace(EMPTY, node_id="w", has_warm=True)
    half = replace(EMPTY, node_id="b", sandbox_count=5)
    assert ids([half, warm]) == ["w", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"is_ready": False},
        {"max_sandboxes": 0},
        {"allocated_cpu": 15},
        {"allocated_memory_mb": 2 * 8192 - 1023},
        {"disk_available_mb": 100},
    ],
)
def test_a_node_without_room_is_left_out(change):
    assert ids([replace(EMPTY, **change)]) == []


def test_the_last_place_that_fits_is_given():
    assert ids([replace(EMPTY, allocated_cpu=14, allocated_memory_mb=2 * 8192 - 1024)]) == ["a"]


def test_an_image_that_lies_on_one_node_goes_there_only():
    other = replace(EMPTY, node_id="b")
    assert ids([EMPTY, other], replace(NEED, node_id="b")) == ["b"]


def test_equal_nodes_are_ranked_alike_every_time():
    nodes = [replace(EMPTY, node_id=name) for name in "cab"]
    assert ids(nodes) == ids(reversed(nodes)) == ["a", "b", "c"]
