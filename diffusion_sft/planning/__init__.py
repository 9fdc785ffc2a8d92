"""What will a study take, and which setting should be changed, before it starts? `run.run_plan` is the verb."""
