"""Who and what: processes, workers, frameworks, containers, devices. No BPF, no root: facts are injected."""
