"""The report of a run: one self-contained HTML file with its tables and learning curves, and its trajectories to browse.

    run folder -> run_data.read -> tables, curves          \\
    trajectories/*.parquet -> index (a few numbers a row)    > page -> report.html, or a server on this machine (`server`)
                           -> contents (what is looked at)  /

Nothing in it is fetched from anywhere: style, script and images lie inside. A file holds as many trajectories as fit (`selection`); the
server shows all of them. `python -m jobs.report RUN_FOLDER` makes both.
"""

MAX_MB = 20.0  # of a report
