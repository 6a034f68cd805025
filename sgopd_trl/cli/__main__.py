"""`python -m sgopd_trl.cli`, which is also what `accelerate launch -m sgopd_trl.cli` starts."""

from . import main


raise SystemExit(main())
