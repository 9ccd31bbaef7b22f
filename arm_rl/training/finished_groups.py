"""The groups that an asynchronous run has finished since its last checkpoint, each in a file: one that is killed does not run them again.

finished group -> its file -> a checkpoint that has it, or has learned from it -> the file goes
"""

from collections.abc import Iterable
from pathlib import Path

from arm_rl.core import trajectory_file
from arm_rl.core.types import Sample
from arm_rl.training.group import Group, number_of
from arm_rl.training.group_runner import GroupRunner


class Journal:
    """Runs groups as its runner does, but for those that are on disk."""

    def __init__(self, runner: GroupRunner, checkpoints: Path) -> None:
        """Goes on with the files that there are, among the checkpoints: who removes these to begin anew removes them as well."""
        self._runner, self._folder = runner, checkpoints / "finished"

    async def run_group(self, sample: Sample, group_id: str, *, size: int, temperature: float) -> Group:
        """The scored group, from its file if there is one. A group with a broken session gets none: another try may do better."""
        number = number_of(group_id)
        path = self._path(number)
        if (kept := await self._runner.load_groups(path, {sample.id: sample})).keys() == {number}:
            return kept[number]
        group = await self._runner.run_group(sample, group_id, size=size, temperature=temperature)
        if all(one.trajectory.error is None and one.error is None for one in group.scored):
            await self._runner.save_groups(path, [group], number)
        return group

    def numbers(self) -> set[int]:
        """The groups that have a file."""
        return {int(path.stem) for path in self._folder.glob("*.parquet")}

    def forget(self, numbers: Iterable[int]) -> None:
        """Removes the files of groups."""
        for number in numbers:
            trajectory_file.remove(self._path(number))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"
