"""What the jobs' command lines say when they end."""

import pytest

from jobs.command_line import INTERRUPTED, guarded


@pytest.mark.parametrize(("again", "said"), [({}, "interrupted\n"), ({"again": "it goes on"}, "interrupted; it goes on\n")])
def test_after_ctrl_c_only_a_job_that_goes_on_says_so(again, said, capsys):
    def start() -> str:
        raise KeyboardInterrupt

    assert guarded(start, **again) == INTERRUPTED
    assert capsys.readouterr().err == said
