from itertools import product

import pytest

from nodeagent import wire
from sandboxes.lifecycle import (
    ACTIVE,
    ALLOWED,
    LISTED,
    PAUSED_STATES,
    RUNNING_STATES,
    EndReason,
    State,
    may_move,
)


def test_every_state_has_a_row_in_the_table():
    assert set(ALLOWED) == set(State)


def test_ended_is_final():
    assert not any(may_move(State.ENDED, to=state) for state in State)


@pytest.mark.parametrize("state", set(State) - {State.KILLING, State.ENDED})
def test_kill_is_allowed_from_every_state(state):
    assert may_move(state, to=State.KILLING)


def test_nothing_but_the_end_follows_a_kill():
    assert ALLOWED[State.KILLING] == {State.ENDED}


def test_a_sandbox_is_shown_as_running_or_paused_but_never_both():
    assert not RUNNING_STATES & PAUSED_STATES
    assert LISTED == RUNNING_STATES | PAUSED_STATES


def test_paused_sandboxes_take_no_place():
    assert State.PAUSED not in ACTIVE
    assert {State.STARTING, State.RUNNING, State.RESUMING} <= ACTIVE


def test_no_state_may_become_itself():
    assert not any(may_move(a, to=b) for a, b in product(State, State) if a is b)


def test_end_reasons_are_the_words_of_the_wire():
    assert set(EndReason.values) == {reason.value for reason in wire.EndReason}
