"""A stage in several processes: `parent` starts and watches them, `rank` is what each of them runs.

The parent plans, owns the run and reports; the processes get what it knows as files (`orders`) and never see the
command line. So a stage is the same whether a terminal, a sweep or a scheduler has started its command.
"""
