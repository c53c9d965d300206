"""One file a stage: pure functions and a thin ``main``. No stage imports another; they meet through files."""
