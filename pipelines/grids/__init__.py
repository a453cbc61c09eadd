"""Many runs: sweeps, the paper's tables, and the pages and figures that come of them."""
