"""Which takes a film uses: a folder that is written as Render Short and Save Clip write it, walked again and again."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack.nodes.render.choice import Again, choose, short

SEED, START, NOTHING = 7, "empty memory", Again()


class Folder:
    """The takes that a run folder lists, newest last, one finished per clip unless a run was stopped."""

    def __init__(self) -> None:
        self.takes: dict[int, list[str]] = {}

    def listed(self, index: int) -> list[str]:
        return self.takes.get(index, [])

    def render(self, texts, again=NOTHING, stop_after: int | None = None, seed: int = SEED) -> list[int]:
        """Make what is missing, in order; returns the clips that were made. stop_after: clips before the power cut."""
        owns = [short(f"{text} {seed}") for text in texts]
        made = []
        for i, choice in enumerate(choose(owns, START, seed, self.listed, again)):
            if stop_after is not None and len(made) == stop_after:
                break
            if choice.fingerprint in self.listed(i):
                continue
            if not (choice.keeps and choice.keeps in self.listed(i)):
                made.append(i)
            self.takes[i] = [choice.fingerprint]
        return made

    def seeds(self) -> list[int]:
        return [int(takes[0].split(".")[1]) for _, takes in sorted(self.takes.items())]


TEXTS = tuple(f"scene {i}" for i in range(6))
OTHER = (*TEXTS[:3], "another scene", *TEXTS[4:])


@pytest.fixture
def folder() -> Folder:
    folder = Folder()
    assert folder.render(TEXTS) == list(range(6))
    return folder


def test_the_same_film_is_found_whole(folder):
    assert folder.render(TEXTS) == [] and folder.seeds() == [SEED] * 6


def test_a_new_text_makes_its_clip_and_those_that_remember_it(folder):
    assert folder.render(OTHER) == [3, 4, 5]


def test_another_film_seed_is_another_film(folder):
    assert folder.render(TEXTS, seed=8) == list(range(6))


def test_a_longer_film_keeps_its_beginning(folder):
    assert folder.render((*TEXTS, "scene 6")) == [6]


def test_only_makes_one_clip_and_keeps_those_behind_it(folder):
    again = Again("only", 3, 11)
    assert folder.render(TEXTS, again) == [3] and folder.seeds() == [7, 7, 7, 11, 7, 7]
    assert folder.render(TEXTS, again) == []  # the same graph again
    assert folder.render(TEXTS) == []  # the switch back at none
    assert folder.seeds() == [7, 7, 7, 11, 7, 7]


def test_from_makes_the_rest_of_the_film(folder):
    again = Again("from", 4, 11)
    assert folder.render(TEXTS, again) == [4, 5] and folder.render(TEXTS, again) == [] == folder.render(TEXTS)
    assert folder.seeds() == [7, 7, 7, 7, 11, 11]


def test_only_with_a_new_text_keeps_those_behind_it(folder):
    assert folder.render(OTHER, Again("only", 3, 7)) == [3]
    assert folder.render(OTHER) == []
    assert folder.render(TEXTS) == [3, 4, 5]  # back to the old text: an ordinary change


def test_one_take_after_the_other(folder):
    folder.render(TEXTS, Again("only", 1, 11))
    assert folder.render(TEXTS, Again("only", 4, 12)) == [4]
    assert folder.seeds() == [7, 11, 7, 7, 12, 7]
    assert folder.render(TEXTS, Again("from", 3, 13)) == [3, 4, 5]
    assert folder.seeds() == [7, 11, 7, 13, 13, 13]


def test_the_films_seed_brings_the_first_take_back(folder):
    before = dict(folder.takes)
    folder.render(TEXTS, Again("only", 2, 11))
    assert folder.render(TEXTS, Again("only", 2, SEED)) == [2]
    assert folder.takes == before


def test_a_clip_behind_whose_own_text_changed_is_not_kept(folder):
    assert folder.render((*OTHER[:5], "another end"), Again("only", 3, 11)) == [3, 5]


def test_a_lost_take_is_made_again_as_it_was(folder):
    """The manifest still lists it, and says with which seed."""
    folder.render(TEXTS, Again("only", 3, 11))
    choices = choose([short(f"{text} {SEED}") for text in TEXTS], START, SEED, folder.listed, Again())
    assert choices[3].seed == 11 and choices[3].fingerprint == folder.listed(3)[0]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mode=st.sampled_from(["only", "from"]), clip=st.integers(0, 5), stop=st.integers(0, 6), clips=st.integers(0, 6))
def test_a_power_cut_at_any_clip_leads_to_the_same_film(mode, clip, stop, clips):
    """Also in a film that was not finished when the clip was made again."""
    again, unbroken, broken = Again(mode, clip, 11), Folder(), Folder()
    for folder in (unbroken, broken):
        folder.render(TEXTS, stop_after=clips)
    made = unbroken.render(TEXTS, again)
    first = broken.render(TEXTS, again, stop_after=stop)
    assert first + broken.render(TEXTS, again) == made
    assert broken.takes == unbroken.takes
    assert broken.render(TEXTS, again) == [] == broken.render(TEXTS)


def test_a_stopped_reroll_leaves_the_old_film_whole(folder):
    """The finished take is listed first while the new one is not done; with the switch at none nothing is made."""
    new = choose([short(f"{text} {SEED}") for text in TEXTS], START, SEED, folder.listed, Again("only", 3, 11))[3]
    folder.takes[3].append(new.fingerprint)
    assert folder.render(TEXTS) == []


@pytest.mark.parametrize("foreign", ["", "word", "0" * 24 + ".7", f"{'0' * 24}.x.{'0' * 24}", "a" * 64])
def test_words_of_other_hands_fit_nothing(folder, foreign):
    folder.takes[2] = [foreign]
    assert folder.render(TEXTS) == [2]  # it comes out the same, so that those behind it still fit


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="clip to make again is not in the film, but got 7; allowed: 1 to 6"):
        choose(["0" * 24] * 6, START, SEED, lambda _: [], Again("only", 6, 1))
    with pytest.raises(ValueError, match="what to make again, but got 'all'; allowed: none, only, from"):
        choose(["0" * 24], START, SEED, lambda _: [], Again("all"))
    choose(["0" * 24], START, SEED, lambda _: [], Again("none", 98, 1))
