"""Keys of random draws: the same everywhere, different for each purpose."""

from armillary.randomness import key


def test_keys_are_the_same_on_every_machine() -> None:
    assert key(42) == 6644374401390479799
    assert key(42, "order", "wikitext", 3) == 3990804836999072987


def test_every_argument_and_its_type_and_place_count() -> None:
    keys = {key(1), key(2), key(1, "a"), key(1, "a", 2), key(1, "a", "2"), key(1, 2, "a"), key(1, "a2"), key(12)}
    assert len(keys) == 8
    assert all(0 <= k < 2**63 for k in keys)
