"""The service's start on Ray Serve: what is refused before a model is loaded."""

import pytest

from arm_rl.core.errors import UserError
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.deployment import deploy_judge
from tests.support.http_server import LoopbackServer, send


def test_a_taken_port_is_an_error_before_anything_is_loaded(local_ray, tmp_path):
    with LoopbackServer(send) as other:
        port = int(other.url.rpartition(":")[2])
        with (
            pytest.raises(UserError, match=rf"^127.0.0.1:{port} cannot be listened on .*--port\)$"),
            deploy_judge(tmp_path / "no model", JudgeSetup(), port=port),
        ):
            pytest.fail("it serves")
