from nodeagent.deadlines import Deadlines


def test_due_sandboxes_come_earliest_first_and_once():
    deadlines = Deadlines()
    deadlines.set("b", 20.0)
    deadlines.set("a", 10.0)
    deadlines.set("c", 30.0)

    assert deadlines.pop_due(25.0) == ["a", "b"]
    assert deadlines.pop_due(25.0) == []
    assert deadlines.next_at() == 30.0


def test_a_moved_deadline_counts_only_where_it_is_now():
    deadlines = Deadlines()
    deadlines.set("a", 10.0)
    deadlines.set("a", 50.0)
    assert deadlines.pop_due(49.0) == []

    deadlines.set("a", 20.0)
    assert deadlines.pop_due(20.0) == ["a"]


def test_a_discarded_deadline_never_comes():
    deadlines = Deadlines()
    deadlines.set("a", 10.0)
    deadlines.discard("a")
    deadlines.discard("never there")

    assert deadlines.next_at() is None
    assert deadlines.pop_due(99.0) == []


def test_moving_one_deadline_for_ever_does_not_grow_the_heap():
    deadlines = Deadlines()
    for instant in range(10_000):
        deadlines.set("a", float(instant))

    assert len(deadlines._heap) < 200
    assert deadlines.pop_due(9_998.0) == []
    assert deadlines.pop_due(9_999.0) == ["a"]
