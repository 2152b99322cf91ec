import threading

import pytest

from unet_jax.run.pictures import Pictures


def test_they_are_drawn_one_at_a_time_and_the_last_one_always():
    begun, go_on, drawn = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        assert go_on.wait(60)
        drawn.append("slow")

    with Pictures() as pictures:
        pictures.draw(slow)
        assert begun.wait(60)
        for name in ("given up", "given up, too", "last"):
            pictures.draw(lambda name=name: drawn.append(name))
        assert not drawn
        go_on.set()
    assert drawn == ["slow", "last"]


def failing():
    raise OSError("the disk is full")


def test_an_error_is_raised_at_the_next_one_or_at_the_end():
    with pytest.raises(OSError, match="full"), Pictures() as pictures:
        pictures.draw(failing)
    drawn = []
    with pytest.raises(OSError, match="full"), Pictures() as pictures:
        pictures.draw(failing)
        while True:  # until it has failed
            pictures.draw(lambda: drawn.append(1))


def test_another_error_goes_first():
    with pytest.raises(ValueError, match="of the step"), Pictures() as pictures:
        pictures.draw(failing)
        raise ValueError("of the step")
