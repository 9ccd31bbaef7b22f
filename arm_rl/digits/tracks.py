"""The demos' tracks by name, and which tools do not fit them."""

from collections.abc import Sequence

from arm_rl.digits.pages import Pages
from arm_rl.digits.tasks import Misfit, Track
from arm_rl.digits.texts import SentenceCheck, Texts
from arm_rl.digits.tiles import Tiles

TRACKS: dict[str, Track] = {"digits": Tiles(), "pages": Pages(), "texts": Texts()}
TILES: Sequence[Track] = (TRACKS["digits"],)  # of the first demo


def misfits(tracks: Sequence[Track], track: Track | None = None) -> list[Misfit]:
    """Tools that a judge of several tracks might take for `track` by mistake: the other tracks', and one that resembles a track's own.

    Of a single track: none.
    """
    if len(tracks) == 1:
        return []
    return [*(other for other in tracks if other is not track), SentenceCheck()]
