"""The tracks by name, and which tools do not fit them."""

from collections.abc import Sequence

from arm_rl.demo.pages import Pages
from arm_rl.demo.tasks import Misfit, Track
from arm_rl.demo.texts import SentenceCheck, Texts
from arm_rl.demo.tiles import Tiles

TRACKS: dict[str, Track] = {"digits": Tiles(), "pages": Pages(), "texts": Texts()}
TILES: Sequence[Track] = (TRACKS["digits"],)  # of the first demo
# half need the tool: `jobs.findings`
MIXED: Sequence[Track] = (Tiles("engraved", asked_plain=False), Tiles("plain", asked_plain=True))


def misfits(tracks: Sequence[Track], track: Track | None = None) -> list[Misfit]:
    """Tools that a judge of several tracks might take for `track` by mistake: the other tracks', and one that resembles a track's own.

    Where all of them need the same tool: none.
    """
    if len({track.tool for track in tracks}) == 1:
        return []
    return [*(other for other in tracks if other is not track), SentenceCheck()]
