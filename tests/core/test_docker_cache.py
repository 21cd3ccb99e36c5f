"""Which pulled images go to make room."""

from hypothesis import given
from hypothesis import strategies as st

from gurney.runtime.docker.cache import Pulled, surplus

NAMES = st.sampled_from([f"app-{number}@sha256:1" for number in range(8)])
IMAGES = st.dictionaries(NAMES, st.builds(Pulled, used=st.floats(0, 100), size=st.integers(0, 50)))


@given(pulled=IMAGES, limit=st.integers(1, 200), busy=st.sets(NAMES))
def test_what_goes(pulled: dict[str, Pulled], limit: int, busy: set[str]) -> None:
    """The least recently used that nobody uses go, no more than need be, until the others fit or all are in use."""
    gone = surplus(pulled, limit, busy)
    assert not busy & set(gone)
    left = {name: each for name, each in pulled.items() if name not in gone}
    size = sum(each.size for each in left.values())
    assert size <= limit or not left.keys() - busy
    if gone:
        last = pulled[gone[-1]]
        assert size + last.size > limit
        assert all(each.used >= last.used for name, each in left.items() if name not in busy)


def test_the_order() -> None:
    """Those go first that were used longest ago."""
    pulled = {"a@1": Pulled(3.0, 10), "b@1": Pulled(1.0, 10), "c@1": Pulled(2.0, 10)}
    assert surplus(pulled, 10, ()) == ["b@1", "c@1"]
    assert surplus(pulled, 20, ()) == ["b@1"]
    assert surplus(pulled, 30, ()) == []
    assert surplus(pulled, 20, {"b@1"}) == ["c@1"]
