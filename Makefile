.PHONY: sync check test smoke bench

sync:  ## environment with the developers' tools
	scripts/setup.sh dev
check:  ## lint, format, types
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyright
test:
	.venv/bin/pytest -q
smoke:  ## build the wheel, install it alone, run the main command from an empty folder
	bash scripts/smoke_wheel.sh
bench:  ## ratios against named peers; appends to benchmarks/results
	.venv/bin/python -m benchmarks.encode_once
	.venv/bin/python -m benchmarks.envs
