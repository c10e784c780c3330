"""Watching training over time: hooks, schedules, measurements, the run folder and its verdicts."""
