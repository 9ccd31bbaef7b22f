"""The load on the service: what is counted as answered, refused and lost."""

import asyncio
import math

import httpx

from arm_rl.experiments.bench.service import ClientOutcomes, _ask

ANSWER = {"opinions": [{"calls": [{}], "turns": ["a", "b"]}]}


async def test_every_request_is_counted_once_and_clients_ask_one_after_the_other():
    running = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        number = int(request.content.decode().strip('{}"n: '))
        if number == 5:
            raise httpx.ConnectError("gone")
        return httpx.Response({3: 429, 4: 500}.get(number, 200), json=ANSWER)

    outcomes = ClientOutcomes()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service") as client:
        await _ask(client, [{"n": number} for number in range(10)], 3, outcomes)
    assert most == 3
    assert outcomes.statuses == {200: 7, 429: 1, 500: 1, 0: 1}
    assert (outcomes.lost, outcomes.calls, outcomes.turns, len(outcomes.seconds)) == (2, 7, 14, 7)


def test_quantiles_are_seconds_of_an_answer():
    outcomes = ClientOutcomes(seconds=[float(number) for number in range(1, 101)])
    assert (outcomes.quantile(0.5), outcomes.quantile(0.99), outcomes.quantile(1.0)) == (50.0, 99.0, 100.0)
    assert math.isnan(ClientOutcomes().quantile(0.5))
