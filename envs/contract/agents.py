"""What can be scored: everything by the oracle, nothing by those who cannot know the answer."""

from __future__ import annotations

from .bench import Bench, Broken, Played, Skip, check, expect
from .blame import raised_at

NULL_LIMIT = 0.02
EXPERT_TASKS = 20
_SHARE = "Reward the result alone, and make answers that are always the same wrong for nearly all tasks."


@check(
    "Give oracle_actions(): the actions that solve self.task; what it cannot solve, fix in the task or in the grader."
)
def _lets_the_oracle_solve_every_task(bench: Bench) -> None:
    missing = [family for family in bench.families() if "oracle" not in bench.agents(family)]
    whose = ", ".join(missing) or "the tasks"
    fix = 'Give each line of the task file a solution ("reference").' if missing == [""] else ""
    expect(not missing, f"there is no oracle for {whose}: nobody knows whether they can be solved", fix)
    for family in bench.families():
        try:
            played = bench.played("oracle", family)
        except Exception as error:
            raise Broken(f"the oracle of {family or 'the tasks'} failed: {raised_at(error)}") from error
        lost = [one for one in played if not one.success or one.reward <= 0]
        if lost:
            last = lost[0]
            raise Broken(
                f"the oracle solved {len(played) - len(lost)} of {len(played)} tasks; on {last.task_id} it got reward "
                f"{last.reward:g}, success {last.success}"
            )


@check(_SHARE)
def _gives_null_agents_nothing(bench: Bench) -> None:
    for family in bench.families():
        for name in (name for name in bench.agents(family) if name.startswith("null-")):
            played = bench.played(name, family)
            reward = sum(one.reward for one in played) / len(played)
            success = sum(bool(one.success) for one in played) / len(played)
            problem = f"{name} got reward {reward:.3g} and success {success:.3g} on average of {len(played)} tasks"
            where = f" of {family}" if family else ""
            expect(max(reward, success) <= NULL_LIMIT, problem + where)


@check("Give experts tasks that they can read from the observation alone; a wrong action is one that the tool refuses.")
def _lets_experts_play(bench: Bench) -> None:
    known = 0
    for family in bench.families():
        names = [name for name in bench.agents(family) if name != "oracle" and not name.startswith("null-")]
        known += len(names)
        best = 0.0
        for name in names:
            try:
                played = bench.played(name, family, EXPERT_TASKS)
            except Exception as error:
                raise Broken(f"expert {name!r} failed on {family or 'a task'}: {raised_at(error)}") from error
            expect(all(one.ended for one in played), f"expert {name!r} did not come to an end")
            best = max(best, sum(bool(one.success) for one in played) / len(played))
        expect(not names or best > NULL_LIMIT, f"no expert of {family or 'the tasks'} solved more than {best:.0%}")
    if not known:
        raise Skip("there are no experts, so `palaestra demos` and the stage SFT have nobody to learn from")


@check("Set reward_range on the class to the least and greatest sum of an episode's rewards, or scale rewards into it.")
def _keeps_rewards_in_their_range(bench: Bench) -> None:
    played = _all_played(bench)
    with bench.make() as env:
        low, high = env.unwrapped.reward_range
    for one in played:
        inside = low - 1e-9 <= one.reward <= high + 1e-9
        expect(inside, f"task {one.task_id} was rewarded with {one.reward:g}; reward_range is [{low:g}, {high:g}]")


@check("Let success and reward come from one Grade: what counts as success must be worth more than what does not.")
def _pays_success_better_than_failure(bench: Bench) -> None:
    played = _all_played(bench)
    won = [one.reward for one in played if one.success]
    lost = [one.reward for one in played if not one.success]
    if not won or not lost:
        raise Skip(f"no episode {'succeeded' if not won else 'failed'}")
    expect(min(won) > max(lost), f"a success was rewarded with {min(won):g}, a failure with {max(lost):g}")


CHECKS = (
    _lets_the_oracle_solve_every_task,
    _gives_null_agents_nothing,
    _lets_experts_play,
    _keeps_rewards_in_their_range,
    _pays_success_better_than_failure,
)


def _all_played(bench: Bench) -> list[Played]:
    """Whatever was played before; at least the null agents' episodes."""
    for family in bench.families():
        for name in bench.agents(family):
            if name == "oracle" or name.startswith("null-"):
                try:
                    bench.played(name, family)
                except Exception:  # who cannot play is another check's finding
                    continue
    return bench.all_played()
