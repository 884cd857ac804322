"""`python -m netsmith` is `netsmith`; under torchrun: `torchrun --nproc_per_node N -m netsmith VERB ...`."""

from netsmith.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
