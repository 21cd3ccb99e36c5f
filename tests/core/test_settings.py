"""Settings that do not go together are refused, each with one line that names them."""

import pytest

from gurney.errors import Invalid
from gurney.settings import Settings, misspelt


@pytest.mark.parametrize(
    ("times", "told"),
    [
        ({"heartbeat_interval": 11}, "node_lost_after: 30 s must be at least 3 heartbeats (33 s)"),
        ({"node_lost_after": 14.9}, "node_lost_after: 14.9 s must be at least 3 heartbeats (15 s)"),
        ({"run_lease": 29}, "run_lease: 29 s must be 0 or at least node_lost_after (30 s)"),
    ],
)
def test_times_that_leave_no_room_are_told(times: dict[str, float], told: str) -> None:
    """Nodes and runs that are there must have the time to say so."""
    with pytest.raises(Invalid) as refused:
        Settings(**times)  # type: ignore[arg-type]
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("times", [{"heartbeat_interval": 10}, {"node_lost_after": 15}, {"run_lease": 0}])
def test_times_that_just_fit_are_taken(times: dict[str, float]) -> None:
    """Three heartbeats are enough, and no lease is one."""
    Settings(**times)  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [f"GURNEY_{name.upper()}" for name in Settings.model_fields])
def test_a_setting_by_a_letter_less_is_told(setting: str) -> None:
    """`GURNEY_REQUIRE_APROVAL` would let any MAP run. Settings themselves, and what is none, are not told."""
    others = ["GURNEY_URL", "GURNEY_TOKEN", "GURNEY_CONFIG", "GURNEY_RUN_ID", "GURNEY_REQUIRE", "GURNEY_TOOLS", "HOME"]
    less = setting[:-2] + setting[-1]
    assert misspelt([setting, *others, less]) == {less: setting}
